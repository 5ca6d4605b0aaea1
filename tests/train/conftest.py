"""A tiny base, tiny domains, and runs over them: everything made here, nothing fetched."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.train.adapter import TrainingResult
from asr.train.config import TrainConfig
from asr.train.config_file import build_config
from asr.train.events import Watcher
from asr.train.prepare import PreparedDomain
from asr.train.sequence import train_sequence
from tests.tiny_models import save_tiny_base

INSTRUCTIONS = {
    "red": "Say the colour of it.",
    "sum": "Add the numbers.",
    "turn": "Turn the word.",
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """The Trainer collects garbage after every run: spare it what the imports left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit-equality is promised for one number of threads: also of what a module's fixtures make."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_domain(path: Path, name: str, rows: int = 24) -> Path:
    """A domain's training file: an instruction, a line of its own, a short answer."""
    source = random.Random(name)
    lines = [
        {
            "prompt": f"{INSTRUCTIONS.get(name, 'Do it.')}\n{name} {i} {source.randint(0, 99)}",
            "completion": f"{name} {'x' * (i % 5)}{i % 3}",
        }
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@dataclass
class Workshop:
    """A base, a folder of training files, and configs over them."""

    base: Path
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def data(self, name: str) -> Path:
        path = self.folder / f"{name}.jsonl"
        return path if path.exists() else write_domain(path, name)

    def raw(
        self, domains: Sequence[str] | dict[str, dict[str, Any]], **changes: Any
    ) -> dict[str, Any]:
        """Plain settings. ``training__epochs=2`` is training.epochs."""
        if not isinstance(domains, dict):
            domains = {name: {} for name in domains}
        tree: dict[str, Any] = {
            "base": str(self.base),
            "device": "cpu",
            "dtype": "float32",
            "adapter": {"rank": 2, "alpha": 4},
            "router": {"layer": 2, "background": 6},
            "training": {"epochs": 1, "batch_size": 4, "max_length": 96, "save_steps": 2},
            "eval": {"max_new_tokens": 3, "max_examples": 3},
            "domains": {
                name: own if "train" in own else {"train": str(self.data(name)), **own}
                for name, own in domains.items()
            },
        }
        for path, value in {**self.settings, **changes}.items():
            *parents, last = path.split("__")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        return tree

    def config(
        self, domains: Sequence[str] | dict[str, dict[str, Any]], **changes: Any
    ) -> TrainConfig:
        return build_config(self.raw(domains, **changes))

    def train(
        self,
        out: str,
        domains: Sequence[str] | dict[str, dict[str, Any]],
        *,
        resume: bool = False,
        overwrite: bool = False,
        watcher: Watcher | None = None,
        **changes: Any,
    ) -> ModelDirectory:
        train_sequence(
            self.config(domains, **changes),
            self.folder / out,
            resume=resume,
            overwrite=overwrite,
            watcher=watcher,
        )
        return ModelDirectory(self.folder / out)


@pytest.fixture
def shop(tiny_base: Path, tmp_path: Path) -> Workshop:
    return Workshop(tiny_base, tmp_path)


class Recorder(Watcher):
    """Remembers what was trained; ``at`` may do something at a step of a domain."""

    def __init__(self, at: Callable[[str, int], None] | None = None) -> None:
        self.at = at
        self.domain = ""
        self.started: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.results: dict[str, TrainingResult] = {}
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def domain_started(self, domain: PreparedDomain, position: int, total: int) -> None:
        self.domain = domain.name
        self.started.append(domain.name)

    def step(self, step: int, steps: int, loss: float | None) -> None:
        self.steps.append((self.domain, step))
        if self.at is not None:
            self.at(self.domain, step)

    def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
        self.results[domain.name] = result


def published(directory: ModelDirectory) -> dict[str, Any]:
    """Everything that two equal runs share, ready to compare."""
    manifest = Manifest.load(directory.path)
    found: dict[str, Any] = {"manifest": manifest.comparable()}
    for name in manifest.domains:
        found[f"adapters/{name}"] = directory.adapter_weights(name).read_bytes()
        found[f"config/{name}"] = directory.adapter_config(name).read_bytes()
        found[f"router/{name}"] = directory.router_statistics(name).read_bytes()
    found["router"] = {
        key: (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
        for key, tensor in safetensors.torch.load_file(directory.router).items()
    }
    found["router file"] = directory.router.read_bytes()
    for file in sorted(directory.eval.glob("*")) if directory.eval.is_dir() else []:
        if file.name != "answers.jsonl":  # a cache: the order of its lines tells of interruptions
            found[f"eval/{file.name}"] = file.read_text(encoding="utf-8")
    found["files"] = sorted(
        str(file.relative_to(directory.path))
        for file in directory.path.rglob("*")
        if file.is_file() and file.name != ".lock"
    )
    found["template"] = directory.chat_template.read_text(encoding="utf-8")
    found["tokenizer"] = (directory.path / "tokenizer.json").read_bytes()
    return found


def assert_equal_runs(one: ModelDirectory, other: ModelDirectory) -> None:
    """Adapters, statistics, router, matrices, ledger: equal, bit for bit."""
    left, right = published(one), published(other)
    assert left.keys() == right.keys()
    different = [key for key in left if left[key] != right[key]]
    assert not different, f"differ: {different}"


SERVER = """
import os, sys
import torch
torch.set_num_threads(1)
import asr, asr.train.sequence
print("ready", flush=True)
for line in sys.stdin:
    config, out = line.rstrip("\\n").split("|")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            settings = asr.TrainConfig.model_validate_json(open(config).read())
            asr.train_sequence(settings, out, resume=True)
            status = 0
        except KeyboardInterrupt:
            status = 130
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class RunServer:
    """Runs in processes of their own, forked from one that has done its imports."""

    def __init__(self, script: str = SERVER) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C at the tests is not one at the runs
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, config: Path, out: Path) -> int:
        """Start a run; return its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{config}|{out}\n")
        self._process.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        """Wait for the run; return its exit status, or minus the signal that ended it."""
        return int(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def server() -> Iterator[RunServer]:
    started = RunServer()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
