"""Prompts of no domain: sampled once, distinct, from subjects and openings of our own."""

from __future__ import annotations

import json

import pytest
import torch

from asr.errors import DataError
from asr.model import background_prompts as module
from asr.model.background_prompts import own_messages, sampled_prompts
from tests.routed import tiny_base


@pytest.fixture(scope="module")
def base():
    return tiny_base()[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASR_CACHE", str(tmp_path))
    return tmp_path / "background"


def test_samples_are_distinct_the_same_again_and_leave_the_random_state(base, cache):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    told = []
    texts = sampled_prompts(base, 70, lambda done, total: told.append((done, total)))
    assert torch.equal(torch.get_rng_state(), before)
    assert told == [(64, 70), (70, 70)]
    assert len(texts) == len(set(texts)) > 35
    assert all(text == text.strip() != "" for text in texts)
    for file in cache.iterdir():
        file.unlink()
    torch.manual_seed(4)
    assert sampled_prompts(base, 70) == texts


def test_they_are_sampled_once(base, cache, monkeypatch):
    texts = sampled_prompts(base, 5)
    (file,) = cache.iterdir()
    monkeypatch.setattr(module, "_sample", lambda *args: pytest.fail("sampled again"))
    told = []
    assert sampled_prompts(base, 5, lambda done, total: told.append((done, total))) == texts
    assert told == [(5, 5)]
    with pytest.raises(pytest.fail.Exception, match="sampled again"):
        sampled_prompts(base, 6)
    monkeypatch.setattr(module, "_sample", lambda *args: ["made", "anew"])
    for damaged in ("", "{}", "[]", json.dumps({"prompts": [1]})):
        file.write_text(damaged)
        assert sampled_prompts(base, 5) == ["made", "anew"]
        assert json.loads(file.read_text())["prompts"] == ["made", "anew"]


def test_a_cache_that_cannot_be_written_is_done_without(base, cache, monkeypatch):
    cache.write_text("a file where the folder would be")
    monkeypatch.setattr(module, "_sample", lambda *args: ["made"])
    assert sampled_prompts(base, 5) == ["made"]


def test_subjects_and_openings_stand_before_what_is_written(base, monkeypatch):
    seen = []
    opened = module._opening_ids

    def watch(base, subject, opening):
        seen.append((subject, opening))
        return opened(base, subject, opening)

    monkeypatch.setattr(module, "_opening_ids", watch)
    texts = sampled_prompts(base, 30)
    assert len({subject for subject, _ in seen}) == 30
    assert sum(opening == "" for _, opening in seen) == 10
    assert not any("{subject}" in opening for _, opening in seen)
    openings = [opening.strip() for _, opening in seen if opening]
    assert sum(any(text.startswith(o) for o in openings) for text in texts) >= 15
    text = base.tokenizer.decode(opened(base, "whales", "How do I"))
    assert "whales" in text and text.endswith("How do I")


def test_a_template_without_system_prompts_still_has_openings(base, monkeypatch):
    render = base.template.render

    def refuse(messages, *rest):
        if messages[0]["role"] == "system":
            raise DataError("no system prompts")
        return render(messages, *rest)

    monkeypatch.setattr(type(base.template), "render", lambda self, *args: refuse(*args))
    text = base.tokenizer.decode(module._opening_ids(base, "whales", "How do I"))
    assert "whales" not in text and text.endswith("How do I")


def test_our_messages_are_distinct_and_of_many_kinds():
    messages = own_messages()
    assert len(messages) == len(set(messages)) >= 200
    assert all(message == message.strip() != "" for message in messages)
    assert sum(not message.isascii() for message in messages) >= 10
    lengths = [len(message.split()) for message in messages]
    assert min(lengths) == 1 and max(lengths) >= 20
