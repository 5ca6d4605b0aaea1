"""Each kind of prompt is routed by features of its own; an older row leaves the confusion alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.matrix import EvalMatrix

SHARED = "Name the colour: "
EXAMPLES = [
    Example(
        (
            {"role": "user", "content": f"{SHARED}item {i}"},
            {"role": "assistant", "content": "red"},
        ),
        {},
        f"x.jsonl:{i + 1}",
    )
    for i in range(3)
]
SET = EvalSet("colours", EXAMPLES, CommonPart(prefix=SHARED), "exact", 8)


class Model:
    """What an evaluator asks of a routed model; a prompt's feature is its text."""

    base = SimpleNamespace(
        fingerprint="f" * 64, dtype_name="float32", quantisation=None, device=torch.device("cpu")
    )
    manifest = SimpleNamespace(
        domains={"colours": SimpleNamespace(adapter=SimpleNamespace(sha256="a" * 64))}
    )

    def encode(self, prompts: Any, shorten: bool = False) -> list[Any]:
        return [
            SimpleNamespace(input_ids=list(p[-1]["content"].encode()), text=p[-1]["content"])
            for p in prompts
        ]

    def embed(self, encoded: Any) -> list[str]:
        return [prompt.text for prompt in encoded]

    def generate(self, prompts: Any, **options: Any) -> list[Any]:
        return [SimpleNamespace(text="red", finish="stop") for _ in prompts]


class Router:
    """Knows prompts by their instruction alone."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def decide(self, pooled: list[str]) -> list[Any]:
        self.seen.append(pooled)
        return [SimpleNamespace(route="colours" if SHARED in t else "base") for t in pooled]


def test_one_evaluator_tells_the_kinds_apart(tmp_path: Path) -> None:
    evaluator = Evaluator(Model(), EvalCache(tmp_path / "answers.jsonl"))  # type: ignore[arg-type]
    router = Router()
    templated, bare = EvalMatrix("templated"), EvalMatrix("bare")
    evaluator.extend(templated, [SET], router)  # type: ignore[arg-type]
    evaluator.extend(bare, [SET], router)  # type: ignore[arg-type]
    assert router.seen == [[f"{SHARED}item {i}" for i in range(3)], [f"item {i}" for i in range(3)]]
    assert templated.confusion.tolist() == [[3, 0]]
    assert bare.confusion.tolist() == [[0, 3]]
    assert bare.routing_accuracy.tolist() == [[0.0]]


def test_the_confusion_is_the_last_routers() -> None:
    matrix = EvalMatrix("templated")
    matrix.add_domain("a", "exact")
    matrix.add_domain("b", "exact")
    matrix.record("b", "a", routes=["a", "b", None, "a"])
    matrix.record("a", "a", routes=["a", "a", "a", "a"])  # a row of the past, entered late
    assert matrix.confusion.tolist() == [[2, 1, 1], [0, 0, 0]]
    assert matrix.routing_accuracy[:, 0].tolist() == [1.0, 0.5]
