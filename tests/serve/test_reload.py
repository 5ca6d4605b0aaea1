"""A directory that changes beside a running server is taken over; no answer between is wrong."""

from __future__ import annotations

import shutil
import time

import pytest

from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.serve.request import Failed, Finished
from asr.train.remove import remove_domain
from tests.routed import INSTRUCTIONS, trained
from tests.serve.serving import ask

PROMPT = f"{INSTRUCTIONS['red']}\nred item 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy that may be changed, beside copies of its base and its data."""
    monkeypatch.setattr("asr.serve.served._LOOK_SECONDS", 0.0)
    for path in trained().iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path / path.name)
    return tmp_path / "model"


def start(folder) -> Engine:
    model = RoutedModel.from_pretrained(
        folder, base=str(folder.parent / "base"), device="cpu", dtype="float32"
    )
    return Engine(model, EngineSettings()).start()


def wait_for(engine, generation: int) -> None:
    deadline = time.monotonic() + 60
    while engine.served.generation < generation and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.served.generation >= generation


def test_a_removed_domain_is_gone_and_nobody_gets_a_wrong_answer(folder):
    """Rows that run with it end with it; what is asked afterwards is routed among the others."""
    fresh = RoutedModel.from_pretrained(
        folder, base=str(folder.parent / "base"), device="cpu", dtype="float32"
    )
    expected = fresh.generate([PROMPT], adapter="red", max_new_tokens=200)[0]
    engine = start(folder)
    try:
        running = ask(engine, PROMPT, "red", max_tokens=200)
        while not running.events:
            time.sleep(0.002)
        remove_domain(folder, "red")
        wait_for(engine, 2)
        assert engine.served.domains == ("sum", "rev")
        assert running.wait().text == expected.text
        assert ask(engine, PROMPT, "red").wait().end == Failed(
            "unknown_model",
            "unknown model 'red' (did you mean 'rev'?); there are: auto, base, rev, sum",
        )
        after = RoutedModel.from_pretrained(
            folder, base=str(folder.parent / "base"), device="cpu", dtype="float32"
        )
        routed = ask(engine, PROMPT).wait()
        assert routed.route.adapter == after.route([PROMPT])[0].route != "red"
        assert routed.text == after.generate([PROMPT], max_new_tokens=8)[0].text
        assert "red" not in engine.status().resident
    finally:
        engine.close()


def test_requests_in_flight_while_their_domain_goes(folder):
    """Each is answered by a domain that was served, or refused by name; never by another's."""
    engine = start(folder)
    base = str(folder.parent / "base")
    fresh = RoutedModel.from_pretrained(folder, base=base, device="cpu", dtype="float32")
    answers = {
        name: fresh.generate([PROMPT], adapter=name, max_new_tokens=8)[0].text
        for name in ("red", "sum", "rev", "base")
    }
    asked = []
    try:
        for turn in range(60):
            asked.append(("red", ask(engine, PROMPT, "red")))
            asked.append(("auto", ask(engine, PROMPT)))
            if turn == 10:
                remove_domain(folder, "red")
            if turn > 10:
                time.sleep(0.01)
        wait_for(engine, 2)
        asked.append(("red", ask(engine, PROMPT, "red")))
        refused = 0
        for model, one in asked:
            one.wait()
            if isinstance(one.end, Finished):
                assert one.text == answers[one.route.adapter]
                assert model == "auto" or one.route.adapter == "red"
            else:
                assert model == "red" and one.end.kind == "unknown_model", one.end
                refused += 1
        assert 1 <= refused < 61
    finally:
        engine.close()


def test_a_new_domain_and_a_new_version_are_taken_over(folder, monkeypatch):
    from asr.cli.main import main

    monkeypatch.chdir(folder.parent)
    engine = start(folder)
    try:
        before = ask(engine, PROMPT, "red").wait()
        assert main(["add", "model", "new=sum.jsonl", "training.epochs=1"]) == 0
        wait_for(engine, 2)
        deadline = time.monotonic() + 30
        while "new" not in engine.served.domains and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "new" in engine.served.domains
        model = RoutedModel.from_pretrained(folder, base="base", device="cpu", dtype="float32")
        expected = model.generate([PROMPT], adapter="new", max_new_tokens=8)[0].text
        assert ask(engine, PROMPT, "new").wait().text == expected
        assert ask(engine, PROMPT, "red").wait().text == before.text
    finally:
        engine.close()


def test_a_directory_that_is_damaged_meanwhile_changes_nothing(folder, caplog):
    engine = start(folder)
    try:
        expected = ask(engine, PROMPT).wait().text
        (folder / "manifest.json").write_text("{broken")
        deadline = time.monotonic() + 10
        while "cannot be taken over" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "cannot be taken over yet" in caplog.text
        assert ask(engine, PROMPT).wait().text == expected
        assert engine.served.generation == 1
    finally:
        engine.close()
