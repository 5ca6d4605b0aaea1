"""Rows of every architecture in one engine: each is what PEFT answers with its adapter alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from asr.data.prompt import encode_prompt
from asr.errors import BaseModelError
from asr.serve.engine import Engine, EngineSettings
from asr.serve.request import Finished
from tests.routed import routed_by_hand, tiny_base
from tests.serve.serving import ask
from tests.tiny_models import ARCHITECTURES, hybrid_model, tiny_model

TIE = 1e-4
"""Where the two likeliest tokens are nearer than this, another order of sums may swap them."""


def routed(folder, architecture: str, adapters: dict[str, tuple[str, Any]]) -> Any:
    model = routed_by_hand(folder, architecture, adapters, [])
    model.manifest.base = SimpleNamespace(name=architecture)
    (folder / "manifest.json").write_text("{}")
    model.directory.path = folder
    return model


@torch.no_grad()
def greedy(model: Any, ids: list[int], steps: int) -> tuple[list[int], list[float]]:
    """Tokens of a plain loop without a cache, and the gap of the two likeliest at each step."""
    tokens, gaps = [], []
    for _ in range(steps):
        logits = model(input_ids=torch.tensor([ids + tokens]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return tokens, gaps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_64_mixed_rows_are_each_pefts_own(architecture, tmp_path):
    """Ranks and placements differ; prompts and answers pass a sliding window of 8."""
    adapters = {"deep": ("one", "deep"), "low": ("two", "all"), "also": ("one", "deep")}
    model = routed(tmp_path, architecture, adapters)
    _, base = tiny_base(architecture)
    engine = Engine(model, EngineSettings(max_batch=64, prefill_tokens=400)).start()
    names = ["deep", "base", "low", "also"]
    prompts = [f"row {i} " + "word " * (i % 9) for i in range(16)]
    try:
        asked = [
            (prompt, name, ask(engine, prompt, name, max_tokens=8 + i % 9, ignore_end=True))
            for i, prompt in enumerate(prompts)
            for name in names
        ]
        found = [(prompt, name, one.wait()) for prompt, name, one in asked]
        status = engine.status()
    finally:
        engine.close()
    assert status.step_rows / status.steps > 8
    references = {"base": tiny_model(architecture)}
    for name in adapters:
        references[name] = PeftModel.from_pretrained(tiny_model(architecture), tmp_path / name)
        references[name].eval()
    ties = 0
    for prompt, name, collected in found:
        assert isinstance(collected.end, Finished), collected.end
        ids = encode_prompt(prompt, base.tokenizer, base.template).input_ids
        count = collected.end.usage.completion_tokens
        tokens, gaps = greedy(references[name], ids, count)
        text = base.tokenizer.decode(tokens, skip_special_tokens=True)
        if collected.text != text:
            assert min(gaps) < TIE, (prompt, name)
            ties += 1
    assert ties <= 2


def test_a_long_prompt_does_not_stop_the_others_tokens(tmp_path):
    """Between two parts of its prefill the running rows get tokens."""
    model = routed(tmp_path, "llama", {"deep": ("one", "deep")})
    engine = Engine(model, EngineSettings(prefill_tokens=16)).start()
    try:
        running = ask(engine, "short", "deep", max_tokens=200, ignore_end=True)
        while len(running.events) < 5:
            pass
        before = len(running.events)
        long = ask(engine, "many words " * 30, "base", max_tokens=1)
        long.wait()
        during = len(running.events) - before
        parts = long.end.usage.prompt_tokens / 16
        assert during >= parts  # two halves, each in parts
        running.ticket.cancel()
    finally:
        engine.close()


def test_a_base_whose_rows_cannot_leave_a_batch_is_refused(tmp_path, monkeypatch):
    model = routed(tmp_path, "llama", {"deep": ("one", "deep")})
    monkeypatch.setattr(model.base.model, "config", hybrid_model().config)
    expected = "cannot be served: its layers keep recurrent states.*use asr generate"
    with pytest.raises(BaseModelError, match=expected):
        Engine(model)
