"""Hub data sets where a command takes files; the rows are those of a local file."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from asr.data import hub
from tests.cli.conftest import Trained, refused, run_asr


def test_eval_on_a_hub_data_set(
    trained: Trained, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(repository: str, configuration: str | None, split: str) -> datasets.Dataset:
        asked.append((repository, configuration, split))
        rows = (trained.root / "red.test.jsonl").read_text().splitlines()
        return datasets.Dataset.from_list([json.loads(row) for row in rows])

    def scores(*options: str) -> dict:
        outcome = run_asr(
            "eval", own, "--kind", "templated", "--json", "--out", tmp_path / "out", *options
        )
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)["matrices"]

    monkeypatch.setattr(hub, "_load", load)
    assert scores("--data", "red=org/name:test") == scores("--split", "test")
    assert asked == [("org/name", None, "test")]
    missing = refused("eval", own, "--data", "red=org/name.jsonl")
    assert missing.startswith(f"there is no file {Path.cwd() / 'org' / 'name.jsonl'}: its folder ")
