"""``NAME=DATA`` as commands take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.cli.named_data import named_data, split_named_data
from asr.errors import ConfigError


def test_files_are_absolute_and_hub_data_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_data(["legal=sub/legal.jsonl", "sums=org/name:test"]) == {
        "legal": str(tmp_path / "sub" / "legal.jsonl"),
        "sums": "hub:org/name:test",
    }


def test_only_the_first_equals_sign_separates() -> None:
    assert split_named_data("legal=a=b.jsonl") == ("legal", "a=b.jsonl")


@pytest.mark.parametrize("argument", ["legal", "legal=", "=legal.jsonl", ""])
def test_what_is_no_pair_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_named_data(argument, "--data")
    assert str(caught.value) == (
        f"--data '{argument}' is not NAME=DATA; write e.g. legal=legal.jsonl"
    )


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--data names 'legal' twice; give one file for it"):
        named_data(["legal=a.jsonl", "legal=b.jsonl"])
