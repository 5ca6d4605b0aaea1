"""Malformed files and configs by the hundred, each refused with exit code 2 and a message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.malformed_inputs import all_cases, good_cases, run_all
from tests.tiny_models import save_tiny_base

CASES = all_cases()
STRIDE = 3  # every third of a kind, and the first; benchmarks/malformed_inputs.py runs all


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("malformed") / "base")


def faults(kinds: Sequence[str], base: Path) -> list[tuple[str, str | None, str]]:
    chosen = [c for kind in kinds for c in [c for c in CASES if c.kind == kind][::STRIDE]]
    assert chosen
    return [
        (f"{outcome.case.kind}: {outcome.case.name}", outcome.fault, outcome.message)
        for outcome in run_all(chosen, base)
        if outcome.fault
    ]


def test_there_are_enough_and_each_is_another() -> None:
    assert len(CASES) >= 200
    inputs = {(tuple(sorted(c.files.items())), tuple(c.links.items()), c.command) for c in CASES}
    assert len(inputs) == len(CASES)


def test_what_they_are_made_from_is_accepted(base: Path) -> None:
    assert [(o.case.name, o.code, o.message) for o in run_all(good_cases(), base) if o.code] == []


@pytest.mark.parametrize("kind", dict.fromkeys(case.kind for case in CASES))
def test_refused(kind: str, base: Path) -> None:
    assert faults([kind], base) == []
