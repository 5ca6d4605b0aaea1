"""Adapters beyond the memory budget come from disk, and answer as if they had always been there."""

from __future__ import annotations

import random
import shutil
import threading
import time

import pytest

from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.serve.request import Failed, Finished
from tests.routed import INSTRUCTIONS, trained
from tests.serve.serving import ask, engine_of

DOMAINS = list(INSTRUCTIONS)


@pytest.fixture
def folder(tmp_path):
    """A copy that may be changed."""
    shutil.copytree(trained() / "model", tmp_path / "model")
    shutil.copytree(trained() / "base", tmp_path / "base")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def expected():
    model = RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    prompts = [f"{INSTRUCTIONS[domain]}\nitem {i}" for i in range(3) for domain in DOMAINS]
    return {
        (prompt, name): answer.text
        for name in (*DOMAINS, "base")
        for prompt, answer in zip(
            prompts, model.generate(prompts, adapter=name, max_new_tokens=8), strict=True
        )
    }


@pytest.mark.parametrize("budget", [0, 30_000, 1 << 30])
def test_random_traffic_within_any_budget(budget, expected):
    """With no budget at all each batch still gets what it needs."""
    engine = engine_of(trained() / "model", adapter_memory=budget)
    numbers = random.Random(2)
    asked = [numbers.choice(list(expected)) for _ in range(60)]
    try:
        collected = [(key, ask(engine, *key)) for key in asked]
        for key, one in collected:
            assert one.wait().text == expected[key], one.end
        status = engine.status()
    finally:
        engine.close()
    assert status.resident_bytes <= max(budget, 60_000)
    assert (status.evictions > 0) == (budget < 1 << 30)
    if budget == 1 << 30:
        assert status.loads == 3


def test_reading_an_adapter_does_not_stop_the_others(expected, monkeypatch):
    engine = engine_of(trained() / "model")
    read, may = engine._bank.prepare, threading.Event()

    def slow(folder, sha256=None):
        if folder.name == "rev":
            assert may.wait(30)
        return read(folder, sha256)

    monkeypatch.setattr(engine._bank, "prepare", slow)
    keys = list(expected)
    try:
        late = [ask(engine, *key) for key in keys if key[1] == "rev"]
        others = [(key, ask(engine, *key)) for key in keys if key[1] != "rev"]
        for key, one in others:
            assert one.wait().text == expected[key]
        assert not any(one.events for one in late)
        assert engine.status().waiting == len(late)
        late[0].ticket.cancel()
        assert late[0].wait().end.reason == "cancelled"
        may.set()
        rest = zip((key for key in keys if key[1] == "rev"), late, strict=True)
        for key, one in list(rest)[1:]:
            assert one.wait().text == expected[key]
    finally:
        may.set()
        engine.close()


def test_an_adapter_that_is_damaged_on_disk_fails_its_requests_only(folder, expected, monkeypatch):
    monkeypatch.setattr("asr.serve.admission._GRACE_SECONDS", 0.2)
    model = RoutedModel.from_pretrained(
        folder, base=str(folder.parent / "base"), device="cpu", dtype="float32"
    )
    engine = Engine(model, EngineSettings()).start()
    keys = list(expected)
    path = folder / "adapters" / "red" / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        collected = [(key, ask(engine, *key)) for key in keys]
        for key, one in collected:
            if key[1] == "red":
                one.wait()
                assert one.end == Failed("adapter", "the adapter of 'red' cannot be read now")
            else:
                assert one.wait().text == expected[key]
        path.write_bytes(whole)
        key = next(key for key in keys if key[1] == "red")
        assert ask(engine, *key).wait().text == expected[key]
    finally:
        engine.close()


def test_adapters_can_be_loaded_and_unloaded_by_name(expected):
    engine = engine_of(trained() / "model")
    key = next(key for key in expected if key[1] == "sum")
    try:
        engine.load_adapter("sum").result(10)
        assert engine.status().resident == ("sum",)
        engine.load_adapter("sum").result(10)  # is there already
        engine.unload_adapter("sum").result(10)
        assert engine.status().resident == ()
        with pytest.raises(Exception, match="unknown resident adapter 'sum'; there are: none"):
            engine.unload_adapter("sum").result(10)
        with pytest.raises(Exception, match=r"unknown domain '\.\./sum'"):
            engine.load_adapter("../sum").result(10)
        assert ask(engine, *key).wait().text == expected[key]
        running = ask(engine, *key, max_tokens=300, ignore_end=True)
        while not running.events:
            time.sleep(0.005)
        with pytest.raises(Exception, match="cannot be unloaded: a batch is running with it"):
            engine.unload_adapter("sum").result(10)
        running.ticket.cancel()
        assert isinstance(running.wait().end, Finished)
    finally:
        engine.close()
