from __future__ import annotations

import io

import pytest
from rich.console import Console

from asr.cli.display import PlainDisplay
from asr.cli.output import seconds, size
from asr.cli.pace import Pace, Work


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_speed_and_time_left() -> None:
    clock = Clock()
    pace = Pace({"a": Work(10, 1000.0), "b": Work(10, 2000.0)}, clock)
    pace.start("a")
    assert pace.left() is None
    clock.now = 50.0  # set-up and the first step do not count
    pace.step(1)
    assert pace.tokens_per_second is None
    clock.now = 54.0
    pace.step(5)
    assert pace.tokens_per_second == 100.0
    assert pace.left() == (5.0, 25.0)
    pace.trained()
    clock.now = 57.0
    pace.start("b")
    pace.step(1)
    clock.now = 58.0
    pace.step(2)
    # 8 steps of 200 tokens at 200 tokens/s, and 3 s afterwards as after a
    assert pace.left() == (8.0, 11.0)


def test_a_domain_that_goes_on_counts_from_its_checkpoint() -> None:
    clock = Clock()
    pace = Pace({"a": Work(10, 1000.0)}, clock)
    pace.start("a")
    pace.step(7)
    clock.now = 2.0
    pace.step(8)
    assert pace.tokens_per_second == 50.0
    assert pace.left() == pytest.approx((4.0, 4.0))


def test_logs_get_a_few_lines() -> None:
    clock, text = Clock(), io.StringIO()
    display = PlainDisplay(Console(file=text, width=80), clock)
    pace = Pace({"a": Work(1000, 1000.0)}, clock)
    pace.start("a")
    display.begin("1/1 a")
    for step in range(1, 1001):
        clock.now += 1.0
        pace.step(step)
        display.step(step, 1000, 1.5, pace)
    for done in range(1, 101):
        clock.now += 1.0
        display.stage("a: router", done, 100)
    lines = text.getvalue().splitlines()
    assert lines[0] == "1/1 a"
    assert [line.split(",")[0] for line in lines[1:5]] == [
        "  step 200/1000",
        "  step 400/1000",
        "  step 600/1000",
        "  step 800/1000",
    ]
    assert lines[1].startswith("  step 200/1000, loss 1.500, 1 tokens/s, 13 min 20 s left")
    assert lines[5:] == ["  a: router: 30/100", "  a: router: 60/100", "  a: router: 90/100"]


def test_numbers_for_people() -> None:
    assert [seconds(value) for value in (0.04, 9.94, 59.4, 61, 3599, 3900)] == [
        "0.0 s", "9.9 s", "59 s", "1 min 01 s", "59 min 59 s", "1 h 05 min",
    ]  # fmt: skip
    assert [size(value) for value in (0, 812, 54_200, 5_420_000, 1_300_000_000)] == [
        "0 B", "812 B", "54.2 kB", "5.4 MB", "1.3 GB",
    ]  # fmt: skip
