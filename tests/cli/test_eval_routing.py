"""``asr eval --routing-only``: reports, figure, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Trained, run_asr


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_and_strangers_are_judged(trained: Trained, tmp_path: Path) -> None:
    labelled = [
        {"domain": "red", "prompt": "red item 1"},
        {"domain": "sum", "prompt": "sum item 2", "group": "short"},
        {"domain": "none", "prompt": "a poem about rain", "group": "far"},
    ]
    questions = written(tmp_path / "q.jsonl", labelled)
    others = tmp_path / "others.txt"
    others.write_text("what is the weather\nhello\n")
    outcome = run_asr(
        *("eval", trained.model, "--routing-only", "--questions", questions),
        *("--unknown", others, "--out", tmp_path / "out"),
    )
    assert outcome.code == 0, outcome.err
    for needed in ("best domain is theirs", "none: ", "far: ", "AUROC", "Brier", "routing.json"):
        assert needed in outcome.out
    record = json.loads((tmp_path / "out" / "routing.json").read_text())
    report = record["sets"]["questions"]
    assert report["domains"] == ["red", "sum"]
    assert (report["forced"]["all"]["n"], report["to_base"]["none"]["n"]) == (2, 3)
    assert (tmp_path / "out" / "questions.png").read_bytes().startswith(b"\x89PNG")


def test_kept_prompts_are_judged_where_no_file_is_given(trained: Trained, tmp_path: Path) -> None:
    outcome = run_asr("eval", trained.model, "--routing-only", "--json", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert set(record["sets"]) == {"templated", "bare"}
    assert record["sets"]["bare"]["forced"]["all"]["share"] > 0.5
    assert "half of which the router was fitted on" in outcome.err


def test_a_domains_prompt_among_the_strangers_is_said(trained: Trained, tmp_path: Path) -> None:
    kept = json.loads((trained.model / "eval" / "red.jsonl").read_text().splitlines()[0])
    prompt = kept["messages"][0]["content"]
    path = written(tmp_path / "u.jsonl", [{"prompt": prompt}])
    outcome = run_asr(
        *("eval", trained.model, "--routing-only", "--unknown", path, "--out", tmp_path / "out")
    )
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert f"{path.name}:1 is labelled none, but is a prompt of 'red' word for word" in said
    assert "no question of a domain among them" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--questions", "q.jsonl"), "--questions belongs to --routing-only; add it"),
        (("--unknown", "q.jsonl"), "--unknown belongs to --routing-only; add it"),
        (
            ("--routing-only", "--split", "test"),
            "--routing-only takes --questions and --unknown; leave out --split, --data and"
            " --max-examples",
        ),
        (
            ("--routing-only", "--questions", "nowhere.jsonl"),
            "nowhere.jsonl does not exist; name a file of JSON lines",
        ),
    ],
)
def test_refusals(trained: Trained, options: tuple[str, ...], message: str) -> None:
    outcome = run_asr("eval", trained.model, *options)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
