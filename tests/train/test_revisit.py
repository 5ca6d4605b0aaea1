"""How new data meets what is kept of the old: exact sums, and prompts kept once."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.router import (
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
)
from asr.train.revisit import _common_facts, joined, merged_prompts

WIDTH = 12
VIEWS = ("templated", "bare")


def share(name: str, states: np.ndarray, held_out: np.ndarray, mapped: FeatureMap) -> RoutingDomain:
    """A domain from pooled states (n, V, d) of its prompts and of those held out."""
    count, views, width = states.shape
    features = mapped(states.reshape(-1, width)).reshape(count, views, -1)
    statistics = DomainStatistics(mapped.dimension).update(features)
    return RoutingDomain(name, statistics, CalibrationBlock(held_out, VIEWS))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([None, 1e-2, 1e-3]),
    st.integers(0, 2**32 - 1),
)
def test_the_router_is_that_of_both_data_sets_at_once(
    first: int, second: int, ridge: float | None, seed: int
) -> None:
    """Below and above the size from which the Gram is kept instead of the rows."""
    source = np.random.default_rng(seed)
    mapped = FeatureMap(WIDTH, 0, 0)

    def states(count: int, shift: float) -> np.ndarray:
        return (source.normal(size=(count, 2, WIDTH)) + shift * np.arange(WIDTH)).astype(np.float32)

    old, new, held_old, held_new = (states(n, 0.3) for n in (first, second, 6, 5))
    other = share("other", states(20, -0.3), states(6, -0.3), mapped)
    one = share("d", old, held_old, mapped)
    both = joined(one, share("d", new, held_new, mapped))
    at_once = share("d", np.concatenate([old, new]), np.concatenate([held_old, held_new]), mapped)
    assert both.statistics.prompts == first + second
    assert both.statistics.is_factored == at_once.statistics.is_factored
    if both.statistics.is_factored:  # the rows themselves: no sum, so no rounding
        assert both.statistics.factor().tobytes() == at_once.statistics.factor().tobytes()
    assert both.calibration is not None and at_once.calibration is not None
    assert both.calibration.pooled.tobytes() == at_once.calibration.pooled.tobytes()
    wanted = RouterSettings(ridge=ridge)
    left, right = (Router.fit([d, other], wanted, mapped) for d in (both, at_once))
    assert left.report.ridge == right.report.ridge
    if right.report.condition <= 1e7:
        gap = np.linalg.norm(left.weights - right.weights) / np.linalg.norm(right.weights)
        assert gap <= 1e-9
        np.testing.assert_allclose(left.report.threshold, right.report.threshold, rtol=1e-7)
    assert left.report.backward_error <= 1e-14
    # the old share is not written to
    assert one.statistics.prompts == first


def example(prompt: str, answer: str = "a") -> Example:
    turns: Any = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Example(turns)


def test_kept_prompts_take_turns_and_new_answers_hold() -> None:
    old = [example("one"), example("two"), example("three"), example("two", "b")]
    new = [example("four"), example("two", "c")]
    merged = merged_prompts(old, new)
    assert [(e.prompt[0]["content"], e.completion) for e in merged] == [
        ("one", "a"),
        ("four", "a"),
        ("three", "a"),
        ("two", "c"),
    ]
    assert merged_prompts([], new) == new and merged_prompts(old, []) == old


def test_what_is_said_of_the_common_part() -> None:
    common = CommonPart(prefix="Say the colour of it.\n")
    same = [example(f"Say the colour of it.\n{c}") for c in "abcdef"]
    other = [example(f"Which colour has this?\n{c}") for c in "abcdef"]
    assert _common_facts("red", common, same) == []
    assert _common_facts("red", common, [*same, example("z")]) == [
        "red: 1 of 7 new prompts lack the common part of the first data ('Say the colour of it.'); "
        "their bare view is the prompt as it is"
    ]
    assert _common_facts("red", common, other)[1:] == [
        "red: the new prompts have a common part of their own ('Which colour has this?'); it stays "
        "in their bare view, only that of the first data is cut"
    ]
    assert _common_facts("red", CommonPart(), [example("a b"), example("c d")]) == []
