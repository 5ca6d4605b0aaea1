"""Sets of near domains follow their rule, and confusions are counted."""

from __future__ import annotations

import numpy as np
import pytest

from asr.data.formats import Example
from benchmarks.near_domains import by_group, by_intent, confusions, judge, learn, report
from benchmarks.routing_methods import OurRouter
from benchmarks.routing_prompts import BACKGROUND, DEV_VIEWS, VIEWS, Prompts, user

INTENTS = ["card_arrival", "Refund_not_showing_up", "card_linking", "top_up_failed", "age_limit"]


def example(intent: str, number: int) -> Example:
    return Example((user(f"{intent} {number}"), {"role": "assistant", "content": intent}))


def test_intents_become_domains_and_neighbours_groups() -> None:
    intents = by_intent([example(intent, n) for n in range(3) for intent in INTENTS])
    assert list(intents) == [
        "banking77-refund_not_showing_up",
        "banking77-age_limit",
        "banking77-card_arrival",
        "banking77-card_linking",
        "banking77-top_up_failed",
    ]
    groups = by_group(intents, 2)
    assert {name: len(found) for name, found in groups.items()} == {
        "banking77-age_limit..card_linking": 9,
        "banking77-refund_not_showing_up..top_up_failed": 6,
    }
    every = [e.prompt_key for found in groups.values() for e in found]
    assert len(set(every)) == len(every) == 15


def test_confusions_are_counted_by_pair() -> None:
    found = {
        "truth": np.array(["a", "a", "a", "b", "b"]),
        "best": np.array(["b", "b", "a", "b", "a"]),
    }
    assert confusions(found) == [
        {"domain": "a", "taken_by": "b", "prompts": 2, "of": 3},
        {"domain": "b", "taken_by": "a", "prompts": 1, "of": 2},
    ]


def test_domains_are_judged_per_view(capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    names = [*BACKGROUND, "a", "b"]
    centres = 5.0 * generator.normal(size=(4, 1, 1, 12))
    counts = {"statistics": 20, "held_out": 8, "dev": 4}
    rows = {
        name: {
            side: centre
            + generator.normal(size=(count, len(DEV_VIEWS if side == "dev" else VIEWS), 12))
            for side, count in counts.items()
        }
        for name, centre in zip(names, centres, strict=True)
    }
    rows["b"]["dev"][:, DEV_VIEWS.index("bare")] = rows["a"]["dev"][:, 0]  # bare b is an a
    method = OurRouter(12, VIEWS)
    learn(method, names, rows)
    found = judge(method, rows, ["a", "b"])
    right = {view: (part["truth"] == part["best"]).mean() for view, part in found.items()}
    assert right == {"templated": 1.0, "bare": 0.5, "framed": 1.0}
    views = [[[user("x")] for _ in VIEWS]]
    prompts = {name: Prompts(views * 20, views * 8, views * 4) for name in names}
    figures = report("pair", {"ours": (OurRouter(12, VIEWS), rows)}, ["a", "b"], prompts)
    assert figures["ours"]["confusions"] == [
        {"domain": "b", "taken_by": "a", "prompts": 4, "of": 4}
    ]
    printed = capsys.readouterr().out
    assert "2 domains; training prompts per domain 28 to 28" in printed
    assert "- b -> a: 4 of 4" in printed
