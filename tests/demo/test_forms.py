"""Which form of the demo runs, and how long it says that it takes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from asr.model.background_prompts import TOKENS
from asr.train.config_file import load_config
from demo.domains import DOMAINS
from demo.forms import (
    DECODE_COST,
    FULL,
    LIMIT_SECONDS,
    QUICK,
    START_SECONDS,
    Budget,
    choose,
    estimate,
    stage_costs,
)
from demo.run import CONFIG

COSTS = {("private", "a"): 60_000.0, ("one LoRA", "a"): 40_000.0, ("score", "a"): 20_000.0}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def budget(rate: float = 100.0) -> tuple[Budget, Clock]:
    clock = Clock()
    made = Budget(COSTS, rate)
    made._clock = clock
    return made, clock


def test_forms_name_domains_of_the_config_in_its_order() -> None:
    configured = list(load_config(CONFIG).domains)
    assert list(FULL.domains) == configured == list(DOMAINS)
    assert [name for name in configured if name in QUICK.domains] == list(QUICK.domains)
    assert len(QUICK.domains) >= 2  # one alone has nothing to forget


def test_the_estimate_is_tokens_by_speed_and_the_start() -> None:
    assert estimate(COSTS, 240.0) == START_SECONDS + 500.0


def test_costs_are_the_tokens_of_each_stage() -> None:
    def prepared(name: str, tokens: int, rows: int, answers: int) -> Any:
        report = SimpleNamespace(total_tokens=tokens, rows=rows, supervised_tokens=answers)
        return SimpleNamespace(
            name=name,
            data=SimpleNamespace(encoded=SimpleNamespace(report=report)),
            settings=SimpleNamespace(passes=2),
            max_new_tokens=30,
        )

    form = replace(QUICK, test=10, background=5)
    # answers of 4 and of 6 tokens
    costs = stage_costs([prepared("a", 900, 20, 80), prepared("b", 700, 10, 60)], form)
    assert costs == {
        ("private", "a"): 900 * 2 + 5 * TOKENS,  # the base writes the background first
        ("one LoRA", "a"): 0.0,  # the same training
        ("score", "a"): DECODE_COST * 10 * (30 + 4 + 4),  # base, private, one LoRA
        ("private", "b"): 700 * 2,
        ("one LoRA", "b"): 700 * 2,
        ("score", "b"): DECODE_COST * 10 * (30 + 6 + (4 + 6)),  # one LoRA: on both
    }


def test_a_fast_machine_runs_the_full_form() -> None:
    form, why = choose(None, COSTS, 240.0)
    assert form is FULL
    assert why == (
        "240 training tokens/s here: the full demo (120,000 tokens) takes about 9 min 00 s"
    )


def test_a_slow_machine_runs_the_short_form_and_says_so_with_the_numbers() -> None:
    form, why = choose(None, COSTS, 60.0)
    assert form is QUICK
    assert why == (
        "60 training tokens/s here: the full demo (120,000 tokens) would take about 34 min 00 s, "
        "and it promises 10 minutes; so this is the short form (2 domains instead of 4). --full "
        "runs the long one"
    )


@pytest.mark.parametrize("form", [FULL, QUICK])
@pytest.mark.parametrize("rate", [10.0, 1000.0])
def test_what_is_asked_for_runs_whatever_the_speed(form: object, rate: float) -> None:
    chosen, why = choose(form, COSTS, rate)  # type: ignore[arg-type]
    assert chosen is form
    assert f"the {form.name} demo takes about" in why  # type: ignore[attr-defined]


def test_the_border_is_the_limit() -> None:
    rate = sum(COSTS.values()) / (LIMIT_SECONDS - START_SECONDS)
    assert choose(None, COSTS, rate * 1.001)[0] is FULL
    assert choose(None, COSTS, rate * 0.999)[0] is QUICK


def test_time_left_falls_with_the_work() -> None:
    made, clock = budget()
    made.enter(("private", "a"))
    assert made.left() == (600.0, 1200.0)
    made.advance(0.1)  # set-up: no speed yet
    assert made.tokens_per_second is None
    clock.now += 60.0
    made.advance(0.5)  # 0.4 of 60,000 tokens in 60 s
    assert made.tokens_per_second == pytest.approx(400.0)
    own, everything = made.left()
    assert own == pytest.approx(75.0)
    assert everything == pytest.approx(900.0)


def test_after_a_tenth_of_the_work_its_own_speed_counts() -> None:
    made, clock = budget()
    made.enter(("private", "a"))
    clock.now += 300.0
    made.leave()
    made.enter(("one LoRA", "a"))
    assert made.left() == (pytest.approx(200.0), pytest.approx(300.0))
    made.leave()
    made.enter(("score", "a"))
    made.leave()
    assert made.left() == (0.0, 0.0)


def test_skipped_stages_take_no_time_and_teach_no_speed() -> None:
    made, clock = budget()
    clock.now += 5.0
    made.skip(("private", "a"))
    made.enter(("one LoRA", "a"))
    assert made.left() == (400.0, 600.0)


def test_a_stage_without_steps_runs_by_the_clock_and_never_to_nothing() -> None:
    made, clock = budget()
    made.enter(("score", "a"))
    assert made.left()[0] == pytest.approx(200.0)
    clock.now += 50.0
    assert made.left()[0] == pytest.approx(150.0)
    clock.now += 1000.0
    assert made.left()[0] == pytest.approx(10.0)
