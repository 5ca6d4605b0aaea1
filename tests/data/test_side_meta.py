"""The side file of meta: found by name, joined row by row, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr.data.cut import dev_cut
from asr.data.load import load_examples
from asr.errors import DataError
from asr.model.kept_prompts import read_kept, write_kept

PAIRS = [{"prompt": f"question {i}", "completion": "A"} for i in range(6)]
OLD_HASH = "4083852ef9ef8a925659b8e91001608916bf3e9325ace93ceef834cb7ba91149"
SIDE = [{"id": i, "choices": ["A", "B"]} for i in range(6)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message(path: Path) -> str:
    with pytest.raises(DataError) as error:
        load_examples(path, name="legal")
    return str(error.value)


def test_joined_row_by_row(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", PAIRS)
    without = load_examples(path, name="legal")
    write(tmp_path / "train.meta.jsonl", SIDE)
    loaded = load_examples(path, name="legal")
    assert [example.meta for example in loaded.examples] == SIDE
    assert [example.meta for example in without.examples] == [{}] * 6
    assert loaded.sha256 != without.sha256
    limited = load_examples(path, name="legal", limit=4)
    assert all(example.prompt[0]["content"].endswith(str(example.meta["id"]))
               for example in limited.examples)  # fmt: skip


def test_the_hash_without_a_side_file_is_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", PAIRS)
    # computed by the release before side files
    assert load_examples(path, name="legal").sha256 == OLD_HASH


def test_beside_any_kind_of_file(tmp_path: Path) -> None:
    write(tmp_path / "a.meta.jsonl", SIDE)
    (tmp_path / "a.json").write_text(json.dumps(PAIRS))
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"q{i},A\n" for i in range(6)))
    for name in ("a.json", "a.csv"):
        examples = load_examples(tmp_path / name, name="legal").examples
        assert [example.meta["id"] for example in examples] == list(range(6))


def test_joined_with_the_rows_own(tmp_path: Path) -> None:
    rows = [{**row, "meta": {"id": i, "own": True}} for i, row in enumerate(PAIRS)]
    path = write(tmp_path / "a.jsonl", rows)
    side = write(tmp_path / "a.meta.jsonl", SIDE)
    assert load_examples(path, name="legal").examples[2].meta == {
        "id": 2,
        "own": True,
        "choices": ["A", "B"],
    }
    write(side, [*SIDE[:4], {"id": 40}, {"id": 50}])
    assert message(path).splitlines() == [
        f"{side}: 2 values contradict a.jsonl; mend or remove:",
        "a.meta.jsonl:5: found another 'id' than in the 'meta' of a.jsonl:5",
        "a.meta.jsonl:6: found another 'id' than in the 'meta' of a.jsonl:6",
    ]


@pytest.mark.parametrize("count", [0, 5])
def test_counts_must_agree(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    side = write(tmp_path / "a.meta.jsonl", SIDE[:count])
    assert message(path) == (
        f"{side} has {count} rows and a.jsonl has 6; it holds the meta of a.jsonl, one object per "
        "row in the same order: mend or rename it"
    )


def test_its_own_bad_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    side = write(tmp_path / "a.meta.jsonl", [*SIDE[:5], 7])
    assert message(path) == f"{side}:6: found the number 7, expected one JSON object"


def test_meta_goes_through_the_cut_and_kept_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    write(tmp_path / "a.meta.jsonl", SIDE)
    cut = dev_cut(load_examples(path, name="legal").examples)
    assert cut.held_out and all(example.meta["choices"] for example in cut.held_out)
    kept = tmp_path / "eval" / "legal.jsonl"
    write_kept(kept, cut.held_out)
    assert [e.meta for e in read_kept(kept)] == [e.meta for e in cut.held_out]
    text = load_examples(write(tmp_path / "t.jsonl", [{"text": f"T {i}"} for i in range(5)]),
                         name="t").examples  # fmt: skip
    write_kept(kept, text)
    assert [(e.messages, e.is_text) for e in read_kept(kept)] == [(e.messages, True) for e in text]
