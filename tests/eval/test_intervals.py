"""Intervals: known values, and properties that hold for any scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.eval.intervals import mean_interval, paired_interval, wilson

scores = st.lists(st.floats(-10, 10, allow_nan=False), min_size=2, max_size=40)


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z = 1.959964: (0.8 + 0.192073 -+ 1.959964 sqrt(0.016 + 0.0096036)) / 1.384146
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.49016, abs=1e-5)
    assert high == pytest.approx(0.94332, abs=1e-5)


def test_wilson_at_the_ends_keeps_a_width() -> None:
    low, high = wilson(0, 20)
    assert low == 0.0
    assert high == pytest.approx(0.16113, abs=1e-5)
    low, high = wilson(20, 20)
    assert low == pytest.approx(0.83887, abs=1e-5)
    assert high == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_within_zero_and_one(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    assert low < high


@settings(max_examples=40, deadline=None)
@given(scores)
def test_interval_contains_the_mean_and_stays_within_the_range(values: list[float]) -> None:
    got = mean_interval(values, resamples=200)
    assert got.low <= got.mean <= got.high
    if got.method == "bootstrap":
        assert min(values) - 1e-9 <= got.low
        assert got.high <= max(values) + 1e-9


def test_method_follows_the_scores() -> None:
    assert mean_interval([0, 1, 1]).method == "wilson"
    assert mean_interval([0, 1, 0.5]).method == "bootstrap"
    assert mean_interval([0, 1, 1], [1, 2, 3]).method == "bootstrap"


def test_interval_shrinks_with_the_root_of_n() -> None:
    base = np.random.default_rng(0).normal(size=50)
    few, many = mean_interval(base), mean_interval(np.tile(base, 16))
    ratio = (few.high - few.low) / (many.high - many.low)
    assert ratio == pytest.approx(4.0, rel=0.1)  # sqrt(16)


def test_bootstrap_agrees_with_the_normal_interval_on_many_scores() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std() / 20
    got = mean_interval(values)
    assert got.low == pytest.approx(values.mean() - half, abs=0.03)
    assert got.high == pytest.approx(values.mean() + half, abs=0.03)


def test_equal_seeds_give_equal_intervals_across_chunks() -> None:
    values = np.random.default_rng(2).normal(size=5_000)  # several chunks of resamples
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_weighted_mean_is_a_ratio_of_sums() -> None:
    got = mean_interval([1.0, 4.0], [3, 1])
    assert got.mean == pytest.approx(7 / 4)


def test_the_interval_of_a_weighted_mean_is_weighted_too() -> None:
    got = mean_interval([1.0, 4.0] * 100, [99, 1] * 100)
    assert got.mean == pytest.approx(1.03)
    assert 1.02 < got.low < got.mean < got.high < 1.05  # without the weights: 2.3 to 2.7


def test_one_value_has_no_interval() -> None:
    got = mean_interval([0.3])
    assert (got.mean, got.n, got.method) == (0.3, 1, "none")
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_pairing_resolves_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(size=100)
    a, b = hard + 0.2 + rng.normal(0, 0.05, 100), hard
    pair = paired_interval(a, b)
    assert pair.low > 0.0
    assert mean_interval(a).low < mean_interval(b).high


def test_paired_difference_of_equal_scores_is_zero() -> None:
    pair = paired_interval([0, 1, 1], [0, 1, 1])
    assert (pair.low, pair.mean, pair.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([], None, "non-empty 1-D"),
        ([[1.0]], None, "non-empty 1-D"),
        ([float("nan")], None, "finite"),
        ([1.0, 2.0], [1.0], "weights must be positive and finite"),
        ([1.0, 2.0], [1.0, 0.0], "weights must be positive and finite"),
    ],
)
def test_bad_scores(values: list[float], weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, weights)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"level must be between 0 and 1, got 1\.0"):
        mean_interval([1, 2], level=1.0)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        mean_interval([1, 2], resamples=0)
    with pytest.raises(ValueError, match="paired scores differ in shape"):
        paired_interval([1, 2], [1])
    with pytest.raises(ValueError, match="wilson needs n >= 1"):
        wilson(3, 2)
