"""An answer is taken from the cache only for what made it: adapter, prompt, length, arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator

EXAMPLES = [
    Example(
        ({"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": "yes"}),
        {},
        f"x.jsonl:{i + 1}",
    )
    for i in range(3)
]
SET = EvalSet("legal", EXAMPLES, CommonPart(), "exact", 8)


class Model:
    """What an evaluator asks of a routed model; counts the prompts that it answers."""

    def __init__(self) -> None:
        self.answered = 0
        self.base = SimpleNamespace(
            fingerprint="f" * 64,
            dtype_name="float32",
            quantisation=None,
            device=torch.device("cpu"),
        )
        self.adapter = SimpleNamespace(sha256="a" * 64)
        entry = SimpleNamespace(adapter=self.adapter)
        self.manifest = SimpleNamespace(domains={"legal": entry})

    def encode(self, prompts: Any) -> list[Any]:
        return [SimpleNamespace(input_ids=list(turns[-1]["content"].encode())) for turns in prompts]

    def generate(self, prompts: Any, **options: Any) -> list[Any]:
        self.answered += len(prompts)
        return [SimpleNamespace(text="yes", finish="stop") for _ in prompts]


def answered(model: Model, cache: EvalCache, evaluated: EvalSet = SET, by: str = "legal") -> int:
    """How many prompts the model has to answer to score a set."""
    before = model.answered
    Evaluator(model, cache).forced(evaluated, "templated", by)  # type: ignore[arg-type]
    return model.answered - before


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def cache(tmp_path: Path, model: Model) -> EvalCache:
    """Holds the answers of ``legal`` to its prompts."""
    cache = EvalCache(tmp_path / "answers.jsonl")
    assert answered(model, cache) == 3
    assert answered(model, cache) == 0
    return cache


def test_another_version_of_the_adapter_answers_anew(model: Model, cache: EvalCache) -> None:
    model.adapter.sha256 = "b" * 64
    assert answered(model, cache) == 3


def test_an_adapter_of_another_name_with_the_same_tensors_need_not(
    model: Model, cache: EvalCache
) -> None:
    model.manifest.domains["twin"] = model.manifest.domains["legal"]
    assert answered(model, cache, by="twin") == 0


def test_the_base_answers_for_itself(model: Model, cache: EvalCache) -> None:
    assert answered(model, cache, by="base") == 3
    model.base.fingerprint = "e" * 64
    assert answered(model, cache, by="base") == 3


def test_a_longer_answer_is_another(model: Model, cache: EvalCache) -> None:
    assert answered(model, cache, replace(SET, max_new_tokens=9)) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype_name", "bfloat16"), ("quantisation", "nf4"), ("device", torch.device("meta"))],
)
def test_other_arithmetic_answers_anew(
    model: Model, cache: EvalCache, field: str, value: Any
) -> None:
    setattr(model.base, field, value)
    assert answered(model, cache) == 3


def test_the_scorer_does_not_matter(model: Model, cache: EvalCache) -> None:
    assert answered(model, cache, replace(SET, scorer="label")) == 0
