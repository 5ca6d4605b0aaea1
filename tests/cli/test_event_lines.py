"""``--progress``: a run as JSON lines, or in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Trained, refused, run_asr, write_rows


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(trained.model, copy)
    return copy


def test_a_run_is_one_event_a_line(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rev.jsonl", "rev", 24)
    outcome = run_asr("add", model, f"rev={data}", "--progress", "jsonl")
    assert outcome.code == 0, outcome.err
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert all(isinstance(event["time"], float) for event in events)
    kinds = list(dict.fromkeys(event["event"] for event in events if event["event"] != "progress"))
    assert kinds == [
        "note",
        "planned",
        "domain_started",
        "step",
        "trained",
        "evaluated",
        "finished",
    ]
    by_kind = {kind: [e for e in events if e["event"] == kind] for kind in kinds}
    [plan] = by_kind["planned"][0]["domains"]
    steps = by_kind["step"]
    assert plan["domain"] == "rev" and plan["train"] + plan["dev"] == 24
    assert [event["step"] for event in steps] == list(range(1, plan["steps"] + 1))
    assert steps[0]["seconds_left"] is None  # the first step carries set-up
    assert steps[-1]["seconds_left"] == 0.0 and steps[-1]["loss"] > 0
    [trained] = by_kind["trained"]
    assert (trained["domain"], trained["steps"]) == ("rev", plan["steps"])
    evaluated = {event["kind"]: event for event in by_kind["evaluated"]}
    matrix = json.loads((model / "eval" / "matrix.json").read_text(encoding="utf-8"))
    assert list(evaluated["templated"]["routed"]) == matrix["domains"] == ["red", "sum", "rev"]
    assert list(evaluated["templated"]["routed"].values()) == matrix["routed"][-1]
    assert events[-1]["domains"] == ["red", "sum", "rev"]
    assert events[-1]["model"] == str(model)


def test_none_prints_nothing(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rev.jsonl", "rev", 24)
    outcome = run_asr("add", model, f"rev={data}", "--progress", "none")
    assert (outcome.code, outcome.out) == (0, "")
    assert "rev" in json.loads((model / "manifest.json").read_text(encoding="utf-8"))["domains"]


def test_an_unknown_kind(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rev.jsonl", "rev", 24)
    message = refused("add", model, f"rev={data}", "--progress", "json")
    assert message == (
        "unknown progress 'json' (did you mean 'jsonl'?); there are: jsonl, none, text"
    )
