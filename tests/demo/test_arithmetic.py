"""``arithmetic``: the worked lines are right, and a question holds the numbers that they use."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from demo import arithmetic
from demo.dates import number_word
from demo.domains import make_domain

OPERATIONS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: Fraction(x, y),
}


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_worked_line_is_right_and_ends_in_its_number(split: str) -> None:
    rules = set()
    for example in make_domain("arithmetic", split, 1000):  # type: ignore[arg-type]
        line, final = example["messages"][1]["content"].split("\n")
        results = []
        for step in line.split(", "):
            match = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)
            assert match is not None, step
            left, right, result = int(match[1]), int(match[3]), int(match[4])
            assert OPERATIONS[match[2]](left, right) == result
            if results:
                assert left == results[-1]  # the second operation goes on from the first
            results.append(result)
        assert final == f"#### {results[-1]}"
        rules.add(example["meta"]["rule"].removesuffix(", words"))
    assert rules == {"plus", "minus", "times", "share", "times plus", "plus minus"}


def test_the_numbers_of_the_work_stand_in_the_question() -> None:
    spelled = 0
    for example in make_domain("arithmetic", "train", 1000):
        question = example["messages"][0]["content"].splitlines()[1]
        line = example["messages"][1]["content"].splitlines()[0]
        words = re.findall(r"[a-z]+(?:-[a-z]+)?|\d+", question.lower())
        known = [w for w in words if w.isdigit()]
        numbers = re.findall(r"\d+", line)
        used = numbers[:2] if "," not in line else [*numbers[:2], numbers[4]]
        for number in used:
            n = int(number)
            assert number in known or (n < 60 and number_word(n) in words)
            spelled += number not in known
    assert spelled > 100


def test_wordings_of_the_splits_are_disjoint() -> None:
    pools = [arithmetic.NAMES, arithmetic.THINGS, arithmetic.BOXES]
    pools += [wordings for _, wordings, _ in arithmetic._RULES]
    for pool in pools:
        assert not set(pool.train) & set(pool.test)
