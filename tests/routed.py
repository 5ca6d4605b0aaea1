"""A routed model trained on a tiny base, and routed models put together on any architecture."""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import asr
from asr.adapters import adapter_sha256
from asr.base.load import LoadedBase, load_base
from asr.model.routed_model import RoutedModel
from asr.router import Decision
from asr.train.events import Watcher
from tests.adapters.making import ROUTER_LAYER, make_adapter
from tests.tiny_models import save_tiny_base

INSTRUCTIONS = {
    "red": "Say the colour of it.",
    "sum": "Add the numbers.",
    "rev": "Turn the word.",
}
CONFIG = """
base: base
dtype: float32
device: cpu
training: {epochs: 1, max_length: 128, learning_rate: 0.02}
router: {layer: 2, background: 6}
eval: {max_new_tokens: 6, max_examples: 5}
domains:
  red: {train: red.jsonl}
  sum: {train: sum.jsonl, adapter: {placement: all}, scorer: loss}
  rev: {train: rev.jsonl, adapter: {placement: {modules: [model.layers.3.mlp.down_proj]}}}
"""


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # each is deleted when the process ends


def _folder() -> Path:
    _KEPT.append(tempfile.TemporaryDirectory(prefix="asr-tests-"))
    return Path(_KEPT[-1].name)


def write_data(folder: Path, domain: str, count: int = 30) -> Path:
    """Write a domain's training file."""
    numbers = random.Random(domain)
    path = folder / f"{domain}.jsonl"
    rows = [
        {
            "prompt": f"{INSTRUCTIONS[domain]}\n{domain} item {i} {numbers.randint(0, 99)}",
            "completion": f"{domain} {i % 3}",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@functools.cache
def trained() -> Path:
    """Return a folder with ``base``, data files, ``c.yaml`` and the trained ``model``; read only.

    ``router-D.safetensors``, ``templated-D.json`` and ``bare-D.json`` are the router and the
    matrices right after domain ``D``.
    """
    folder = _folder()
    save_tiny_base(folder / "base")
    for domain in INSTRUCTIONS:
        write_data(folder, domain)
    (folder / "c.yaml").write_text(CONFIG)
    asr.train_sequence(
        asr.load_config(folder / "c.yaml"), folder / "model", watcher=_KeepsHistory(folder)
    )
    return folder


class _KeepsHistory(Watcher):
    """Copies the router and the matrices as they stood after each domain."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def evaluated(self, domain: str, matrices: Any) -> None:
        """Called when the domain's router and matrices are on disk."""
        router = self.folder / "model" / "router" / "router.safetensors"
        shutil.copy(router, self.folder / f"router-{domain}.safetensors")
        for kind, matrix in matrices.items():
            (self.folder / f"{kind}-{domain}.json").write_text(matrix.to_json())


@functools.cache
def tiny_base(architecture: str = "llama") -> tuple[Path, LoadedBase]:
    """Return the folder of a saved tiny base and the base loaded in float32; shared, unchanged."""
    folder = _folder()
    save_tiny_base(folder, architecture)
    return folder, load_base(str(folder), device="cpu", dtype="float32")


class FixedRouter:
    """Sends prompts where the test says, in the order of its ``routes``."""

    def __init__(self, names: list[str], routes: list[str]) -> None:
        self.names = tuple(sorted(names))
        self.routes = routes
        self.pooled: list[Any] = []

    def decide(self, pooled: np.ndarray) -> list[Decision]:
        """One decision per row."""
        self.pooled.append(pooled)
        taken, self.routes = self.routes[: len(pooled)], self.routes[len(pooled) :]
        return [
            Decision(route, route, route == "base", 1.0, 0.5, 0.0, {route: 1.0}, 1.0)
            for route in taken
        ]


def routed_by_hand(
    folder: Path, architecture: str, adapters: dict[str, tuple[str, Any]], routes: list[str]
) -> RoutedModel:
    """A routed model with random adapters; ``adapters`` maps names to (passes, placement)."""
    _, base = tiny_base(architecture)
    entries = {}
    for seed, (name, (passes, kind)) in enumerate(adapters.items()):
        made = make_adapter(
            folder / name, architecture, kind, seed=seed + 1, fingerprint=base.fingerprint
        )
        entry = SimpleNamespace(version=1, sha256=adapter_sha256(made))
        entries[name] = SimpleNamespace(passes=passes, adapter=entry)
    manifest: Any = SimpleNamespace(
        contract=SimpleNamespace(layer=ROUTER_LAYER), two_pass=False, domains=entries
    )
    directory: Any = SimpleNamespace(adapter=lambda name, version: folder / name)
    router: Any = FixedRouter(list(adapters), routes)
    return RoutedModel(base, manifest, directory, router)
