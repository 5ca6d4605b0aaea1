"""A domain's data from its file: minimum, limit, hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr.data.load import load_examples
from asr.errors import DataError


def write(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {index}", "completion": "A"} for index in range(count)]


def test_loads(tmp_path: Path) -> None:
    path = write(tmp_path, pairs(5))
    loaded = load_examples(str(path), name="legal")
    assert [e.source for e in loaded.examples] == [f"data.jsonl:{i}" for i in range(1, 6)]
    assert loaded.path == path
    assert len(loaded.sha256) == 64


TAIL = "a domain needs at least 4 with different prompts (training, dev cut, calibration); add rows"


@pytest.mark.parametrize(
    ("rows", "limit", "found"),
    [
        ([], None, "0 examples"),
        (pairs(1), None, "1 example"),
        (pairs(3), None, "3 examples"),
        (pairs(1) * 5, None, "5 examples with 1 different prompt"),
        (pairs(2) * 5, None, "10 examples with 2 different prompts"),
    ],
)
def test_too_few(tmp_path: Path, rows: list[dict[str, Any]], limit: int | None, found: str) -> None:
    path = write(tmp_path, rows)
    with pytest.raises(DataError) as error:
        load_examples(path, name="legal", limit=limit)
    assert str(error.value) == f"legal: data.jsonl has {found}; {TAIL} to {path}"


def test_too_low_a_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_examples(write(tmp_path, pairs(9)), name="legal", limit=3)
    advice = TAIL.replace("add rows", "raise limit, or leave it out")
    found = "9 examples, of which limit 3 keeps 3"
    assert str(error.value) == f"legal: data.jsonl has {found}; {advice}"


def test_another_minimum(tmp_path: Path) -> None:
    path = write(tmp_path, pairs(1))
    assert len(load_examples(path, name="legal", minimum=1).examples) == 1
    with pytest.raises(DataError, match="needs at least 9 with different prompts"):
        load_examples(path, name="legal", minimum=9)


def test_an_empty_dev_or_test_file(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    with pytest.raises(DataError) as error:
        load_examples(path, name="legal", minimum=1)
    assert str(error.value) == (
        f"legal: data.jsonl has 0 examples; at least 1 is needed; add rows to {path}"
    )


def test_limit_is_the_first_of_a_seeded_shuffle_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path, pairs(60))

    def lines(limit: int | None, seed: int = 0) -> list[int]:
        loaded = load_examples(path, name="legal", limit=limit, seed=seed)
        return [int(e.source.split(":")[1]) for e in loaded.examples]

    small, large = lines(10), lines(30)
    assert len(small) == 10 and set(small) < set(large)
    assert small == sorted(small) == lines(10)
    assert small != list(range(1, 11))
    assert lines(10, seed=1) != small
    assert lines(60) == lines(1000) == lines(None) == list(range(1, 61))


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(tmp_path: Path, limit: int) -> None:
    with pytest.raises(DataError) as error:
        load_examples(write(tmp_path, pairs(5)), name="legal", limit=limit)
    assert str(error.value) == (
        f"legal: limit is {limit}; give 1 or more, or leave it out for all rows"
    )


def test_hash_follows_the_examples_and_not_the_file(tmp_path: Path) -> None:
    rows = [{**row, "meta": {"b": 1, "a": [2]}} for row in pairs(5)]
    chats = [
        {
            "id": index,
            "meta": {"a": [2], "b": 1},
            "messages": [
                {"content": row["prompt"], "role": "user"},
                {"role": "assistant", "content": "A"},
            ],
        }
        for index, row in enumerate(rows)
    ]

    def digest(rows: list[dict[str, Any]], name: str) -> str:
        return load_examples(write(tmp_path, rows, name), name="legal").sha256

    first = digest(rows, "a.jsonl")
    assert digest(chats, "b.jsonl") == first
    assert digest(pairs(5), "c.jsonl") != first  # meta counts
    assert digest(rows[::-1], "d.jsonl") != first  # so does the order
    assert digest([*rows[:4], {**rows[4], "completion": "B"}], "e.jsonl") != first


def test_errors_of_the_file_come_through(tmp_path: Path) -> None:
    path = write(tmp_path, [*pairs(4), {"prompt": "x"}])
    with pytest.raises(DataError, match=r"data\.jsonl:5: found the keys 'prompt'"):
        load_examples(path, name="legal")
    with pytest.raises(DataError, match="unknown data format 'chat'"):
        load_examples(path, name="legal", fmt="chat")
    with pytest.raises(DataError, match=r"did you mean 'data\.jsonl'"):
        load_examples(tmp_path / "dat.jsonl", name="legal")
