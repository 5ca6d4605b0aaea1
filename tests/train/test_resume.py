"""A run that was stopped, at whatever moment and by whatever means, and then resumed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from asr.errors import ConfigError
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.train.domain_data import encode_domain
from asr.train.sequence import train_sequence
from tests.train.conftest import (
    Recorder,
    RunServer,
    Workshop,
    assert_equal_runs,
    published,
    write_domain,
)


class Stop(Exception):
    """What ends a run in these tests."""


def stop_at(domain: str, step: int) -> Recorder:
    def at(name: str, now: int) -> None:
        if (name, now) == (domain, step):
            raise Stop

    return Recorder(at)


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_resuming_makes_a_damaged_background_class_again(shop: Workshop, damage: str) -> None:
    out = shop.train("m", ["red"])
    before, whole = published(out), out.background.read_bytes()
    if damage == "gone":
        out.background.unlink()
    else:
        out.background.write_bytes(whole[:-8] + bytes(8))
    shop.train("m", ["red"], resume=True)
    assert out.background.read_bytes() == whole
    assert published(out) == before


def test_resuming_a_finished_run_does_nothing(shop: Workshop) -> None:
    out = shop.train("m", ["red", "sum"])
    before, times = published(out), stamps(out.adapters)
    statistics = {n: out.router_statistics(n).stat().st_mtime_ns for n in ("red", "sum")}
    watcher = Recorder()
    shop.train("m", ["red", "sum"], resume=True, watcher=watcher)
    assert (watcher.started, watcher.steps) == ([], [])
    assert stamps(out.adapters) == times
    assert {n: out.router_statistics(n).stat().st_mtime_ns for n in ("red", "sum")} == statistics
    assert published(out) == before


def test_resume_of_nothing_starts(shop: Workshop) -> None:
    out = shop.train("m", ["red"], resume=True)
    assert Manifest.load(out.path).finished == ["red"]


@pytest.mark.parametrize(
    ("domain", "step", "dropout"),
    [("red", 1, 0.0), ("red", 3, 0.3), ("sum", 2, 0.0), ("sum", 5, 0.3)],
)
def test_a_stopped_run_resumes_to_the_same_directory(
    shop: Workshop, domain: str, step: int, dropout: float
) -> None:
    shop.settings["adapter__dropout"] = dropout
    whole = shop.train("whole", ["red", "sum"])
    with pytest.raises(Stop):
        shop.train("cut", ["red", "sum"], watcher=stop_at(domain, step))
    watcher = Recorder()
    cut = shop.train("cut", ["red", "sum"], resume=True, watcher=watcher)
    last_saved = (step - 1) // 2 * 2
    assert watcher.steps[0] == (domain, last_saved + 1)  # not from the start
    assert_equal_runs(whole, cut)


STAGES = {
    "adapter saved, ledger not": "asr.train.domain.adapter_sha256",
    "statistics": "asr.train.domain.store_domain",
    "statistics saved, ledger not": "asr.train.domain.write_kept",
    "router": "asr.train.domain.store_router",
    "evaluation": "asr.train.domain.extend_matrices",
    "between two matrices": "asr.eval.history.complete_matrix",
    "template": "asr.train.sequence.write_text",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_between_stages(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    target = STAGES[stage]
    module, _, name = target.rpartition(".")
    honest = getattr(sys.modules[module], name)
    calls = []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if name == "complete_matrix" and len(calls) < 2:
            return honest(*args, **kwargs)
        raise Stop

    whole = shop.train("whole", ["red"])
    with monkeypatch.context() as patch:
        patch.setattr(target, stopping)
        with pytest.raises(Stop):
            shop.train("cut", ["red"])
    assert calls
    cut = shop.train("cut", ["red"], resume=True)
    assert_equal_runs(whole, cut)


def test_a_run_killed_before_its_first_ledger_blocks_nobody(shop: Workshop) -> None:
    folder = shop.folder / "m"
    folder.mkdir()
    (folder / ".staging-manifest.json-0123456789abcdef").write_text("{")
    (folder / ".lock").write_text("")
    whole = shop.train("whole", ["red"])
    assert_equal_runs(whole, shop.train("m", ["red"], resume=True))
    for flags in ({}, {"overwrite": True}):
        other = shop.folder / f"n{len(flags)}"
        other.mkdir()
        (other / ".staging-manifest.json-0123456789abcdef").write_text("{")
        assert_equal_runs(whole, shop.train(other.name, ["red"], **flags))


# -- what may change, and what may not -----------------------------------------------------------


def test_appending_a_domain(shop: Workshop) -> None:
    shop.train("m", ["red"])
    watcher = Recorder()
    out = shop.train("m", ["red", "sum"], resume=True, watcher=watcher)
    assert watcher.started == ["sum"]
    assert_equal_runs(shop.train("whole", ["red", "sum"]), out)


def refusal(shop: Workshop, domains: Any, **changes: Any) -> str:
    before = published(ModelDirectory(shop.folder / "m"))
    with pytest.raises(ConfigError) as caught:
        shop.train("m", domains, resume=True, **changes)
    assert published(ModelDirectory(shop.folder / "m")) == before
    return str(caught.value)


ADVICE = "; undo the change, or train into a new folder"


def test_a_changed_finished_domain_is_refused_naming_what_changed(shop: Workshop) -> None:
    shop.train("m", ["red", "sum"])
    both = ["red", "sum"]
    assert refusal(shop, {"red": {"training": {"epochs": 3}}, "sum": {}}) == (
        f"cannot resume: domain 'red' is finished and epochs changed: 1 -> 3{ADVICE}"
    )
    assert refusal(shop, {"red": {}, "sum": {"adapter": {"rank": 4}}}) == (
        f"cannot resume: domain 'sum' is finished and placement.rank changed: 2 -> 4{ADVICE}"
    )
    assert refusal(shop, both, seed=4) == (
        "cannot resume: seed changed: 0 -> 4, and domains 'red', 'sum' are finished with it"
        f"{ADVICE}"
    )
    assert refusal(shop, both, keep_eval=False) == (
        "cannot resume: keep_eval changed: true -> false, and domain 'red' is finished with it"
        f"{ADVICE}"
    )
    assert refusal(shop, both, router__layer=1).startswith(
        "cannot resume: 3 changes touch finished domains"
    )
    assert refusal(shop, ["sum", "red"]) == (
        f"cannot resume: the order of finished domains changed: [red, sum] -> [sum, red]{ADVICE}"
    )
    assert "domain 'turn' stands before the finished 'sum'" in refusal(shop, ["red", "turn", "sum"])
    assert "domain 'sum' is finished and no longer in the config" in refusal(shop, ["red"])
    assert refusal(shop, {"red": {"limit": 20}, "sum": {}}).startswith(
        "cannot resume: domain 'red' is finished and training data (sha256) changed: "
    )
    dev = str(write_domain(shop.folder / "dev.jsonl", "dev", 5))
    assert refusal(shop, {"red": {"dev": dev}, "sum": {}}).startswith(
        "cannot resume: domain 'red' is finished and training data (sha256) changed: "
    )
    with (shop.folder / "red.jsonl").open("a") as file:
        file.write('{"prompt": "new", "completion": "row"}\n')
    assert refusal(shop, both).startswith(
        "cannot resume: domain 'red' is finished and training data (sha256) changed: "
    )


def test_a_published_adapter_holds_keep_eval_before_its_domain_is_done(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*args: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("asr.train.domain.store_domain", stopping)
        shop.train("m", ["red"])
    with pytest.raises(ConfigError, match=r"keep_eval changed: true -> false, and domain 'red'"):
        shop.train("m", ["red"], resume=True, keep_eval=False)


def test_settings_are_compared_without_the_data_too(shop: Workshop) -> None:
    shop.train("m", ["red"])
    (shop.folder / "red.jsonl").unlink()
    gone = {"red": {"train": str(shop.folder / "red.jsonl")}}
    message = refusal(shop, gone, training__learning_rate=0.5)
    assert message == (
        f"cannot resume: domain 'red' is finished and learning_rate changed: 0.0076 -> 0.5{ADVICE}"
    )
    assert "batch_size changed: 4 -> 8" in refusal(shop, gone, training__batch_size=8)
    watcher = Recorder()
    # a rule's choice needs the data, and is not compared without it
    shop.train("m", gone, resume=True, watcher=watcher, training__batch_size=None)
    assert watcher.started == []


def test_a_finished_domain_keeps_what_rules_of_another_version_chose(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_settings = {"training__batch_size": None, "training__learning_rate": None}
    out = shop.train("m", ["red"], **open_settings)
    before = Manifest.load(out.path).domains["red"]
    monkeypatch.setattr("asr.train.prepare.choose_learning_rate", lambda modules, batch: 0.25)
    monkeypatch.setattr("asr.train.prepare.choose_batch_size", lambda rows, epochs, processes: 8)
    shop.train("m", ["red", "sum"], resume=True, **open_settings)
    after = Manifest.load(out.path).domains
    assert after["red"] == before
    assert (after["sum"].training["batch_size"], after["sum"].training["learning_rate"]) == (
        8,
        0.25,
    )
    given = {**open_settings, "training__learning_rate": 0.25}
    assert "learning_rate changed: 0.0" in refusal(shop, ["red", "sum"], **given)


def test_a_finished_domain_needs_its_dev_file_no_more(shop: Workshop) -> None:
    dev = write_domain(shop.folder / "dev.jsonl", "dev", 5)
    domains = {"red": {"dev": str(dev)}}
    out = shop.train("m", domains)
    before = published(out)
    dev.unlink()
    shop.train("m", domains, resume=True)
    assert published(out) == before


def test_data_of_a_finished_domain_that_cannot_be_read(shop: Workshop) -> None:
    out = shop.train("m", ["red"])
    before = published(out)
    red = shop.folder / "red.jsonl"
    red.write_text("")
    assert refusal(shop, ["red"]) == (
        "domain 'red' is finished, and its data cannot be compared with what it was trained on: "
        f"red: red.jsonl has 0 examples; a domain needs at least 4 with different prompts "
        f"(training, dev cut, calibration); add rows to {red}\n"
        "put it back as it was, or move it away: a finished domain does not need it"
    )
    assert published(out) == before


def test_data_of_finished_domains_is_compared_and_not_encoded(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.train("m", ["red"])
    encoded = []

    def counting(name: str, *arguments: Any) -> Any:
        encoded.append(name)
        return encode_domain(name, *arguments)

    monkeypatch.setattr("asr.train.prepare.encode_domain", counting)
    whole = shop.train("m", ["red", "sum"], resume=True)
    assert encoded == ["sum"]
    assert "views changed" in refusal(shop, ["red", "sum"], training__views=["bare"])
    (shop.folder / "red.jsonl").write_text("{")  # nobody looks
    train_sequence(
        shop.config(["red", "sum", "turn"]), whole.path, resume=True, compare_finished=False
    )
    assert encoded == ["sum", "turn"]


def test_an_unfinished_domain_may_change_and_starts_again(shop: Workshop) -> None:
    with pytest.raises(Stop):
        shop.train("m", ["red"], watcher=stop_at("red", 4))
    watcher = Recorder()
    out = shop.train("m", ["red"], resume=True, watcher=watcher, adapter__rank=3)
    assert watcher.steps[0] == ("red", 1)
    assert_equal_runs(shop.train("whole", ["red"], adapter__rank=3), out)


def test_no_checkpoint_outlives_the_settings_that_it_was_made_with(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the moment at which the ledger with the changed settings is on disk."""
    save = Manifest.save

    def killed(manifest: Manifest, path: Path) -> None:
        save(manifest, path)
        raise Stop

    with pytest.raises(Stop):
        shop.train("m", ["red"], watcher=stop_at("red", 4))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Manifest, "save", killed)
        shop.train("m", ["red"], resume=True, training__learning_rate=0.02)
    watcher = Recorder()
    out = shop.train("m", ["red"], resume=True, watcher=watcher, training__learning_rate=0.02)
    assert watcher.steps[0] == ("red", 1)
    assert_equal_runs(shop.train("whole", ["red"], training__learning_rate=0.02), out)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 9}, {"router__layer": 3}, {"keep_eval": False}, {"router__two_pass": True}],
)
def test_before_the_first_domain_is_finished_everything_may_change(
    shop: Workshop, changes: dict[str, Any]
) -> None:
    with pytest.raises(Stop):
        shop.train("m", ["red"], watcher=stop_at("red", 4))
    out = shop.train("m", ["red"], resume=True, **changes)
    assert_equal_runs(shop.train("whole", ["red"], **changes), out)


def test_another_base_before_the_first_domain_is_finished(shop: Workshop) -> None:
    from tests.tiny_models import save_tiny_base

    with pytest.raises(Stop):
        shop.train("m", ["red"], watcher=stop_at("red", 4))
    shop.base = save_tiny_base(shop.folder / "other", seed=8)
    out = shop.train("m", ["red"], resume=True)
    assert_equal_runs(shop.train("whole", ["red"]), out)


def test_unfinished_domains_may_move_and_go(shop: Workshop) -> None:
    with pytest.raises(Stop):
        shop.train("m", ["red", "sum"], watcher=stop_at("red", 4))
    out = shop.train("m", ["turn", "red"], resume=True)
    assert list(Manifest.load(out.path).domains) == ["turn", "red"]
    again = Recorder()
    shop.train("m", ["turn", "red"], resume=True, watcher=again)
    assert again.started == []
    assert_equal_runs(shop.train("whole", ["turn", "red"]), out)


def test_router_and_scoring_are_derived_again(shop: Workshop) -> None:
    out = shop.train("m", ["red", "sum"])
    times = stamps(out.adapters)
    changes = {"router__ridge": 0.5, "router__abstain": 0.1, "eval__max_new_tokens": 2}
    shop.train("m", {"red": {"scorer": "loss"}, "sum": {}}, resume=True, **changes)
    assert stamps(out.adapters) == times
    whole = shop.train("whole", {"red": {"scorer": "loss"}, "sum": {}}, **changes)
    assert_equal_runs(whole, out)
    assert json.loads(out.matrix.read_text())["scorers"] == ["loss", "exact"]


def test_plain_texts_are_scored_by_loss_after_their_file_is_gone(shop: Workshop) -> None:
    path = shop.folder / "notes.jsonl"
    path.write_text("".join(f'{{"text": "note {i} of many"}}\n' for i in range(24)))
    out = shop.train("m", {"notes": {"train": str(path)}})
    path.unlink()
    shop.train("m", {"notes": {"train": str(path)}, "red": {}}, resume=True)
    assert json.loads(out.matrix.read_text())["scorers"] == ["loss", "exact"]


def test_weights_of_a_new_ridge_are_new(shop: Workshop) -> None:
    out = shop.train("m", ["red", "sum"])
    before = load_file(out.router)
    shop.train("m", ["red", "sum"], resume=True, router__ridge=0.5)
    after = load_file(out.router)
    assert any((before[key] != after[key]).any() for key in before if before[key].ndim == 2)


# -- kill -9 ---------------------------------------------------------------------------------------


def test_four_kills_at_random_moments(shop: Workshop, server: RunServer) -> None:
    config = shop.folder / "config.json"
    config.write_text(json.dumps(shop.raw(["red", "sum", "turn"])))
    whole, out = shop.folder / "whole", shop.folder / "cut"
    began = time.perf_counter()
    server.start(config, whole)
    assert server.wait() == 0
    length = time.perf_counter() - began
    source = random.Random(20)
    ends = []
    for _ in range(4):
        process = server.start(config, out)
        time.sleep(source.random() * length / 3)
        with contextlib.suppress(ProcessLookupError):  # over already
            os.kill(process, signal.SIGKILL)
        ends.append(server.wait())
    assert -signal.SIGKILL in ends
    server.start(config, out)
    assert server.wait() == 0
    assert_equal_runs(ModelDirectory(whole), ModelDirectory(out))
