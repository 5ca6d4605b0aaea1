"""Measures of a router against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.eval.routing.measures import (
    abstain_curve,
    auroc,
    balanced_weights,
    brier,
    calibration_error,
    constant_brier,
    matched_auroc,
    reliability,
)

values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(values, values)
def test_auroc_counts_pairs(known: list[float], unknown: list[float]) -> None:
    pairs = [(k > u) + 0.5 * (k == u) for k in known for u in unknown]
    assert auroc(np.array(known), np.array(unknown)) == pytest.approx(np.mean(pairs))


def test_auroc_of_nothing() -> None:
    assert auroc(np.zeros(0), np.ones(3)) is None
    assert matched_auroc(np.ones(2), np.array([True, False]), np.array([1, 50])) is None


def test_matched_auroc_sees_no_difference_of_length() -> None:
    """A score that is the length itself tells strangers apart, but none of the same length."""
    words = np.array([20, 21, 20, 3, 4, 21, 20, 3])
    known = np.array([True, True, True, True, False, False, False, False])
    score = np.where(words > 10, 1.0, 0.0)
    assert auroc(score[known], score[~known]) == pytest.approx(0.625)
    assert matched_auroc(score, known, words) == pytest.approx(0.5)


def test_both_kinds_weigh_the_same() -> None:
    known = np.array([True, False, False, False])
    np.testing.assert_allclose(balanced_weights(known), [0.5, 1 / 6, 1 / 6, 1 / 6])
    np.testing.assert_allclose(balanced_weights(np.array([True, True])), [0.5, 0.5])


def test_a_constant_is_the_best_constant() -> None:
    right = np.array([True, True, False, True])
    weights = np.full(4, 0.25)
    best = constant_brier(right, weights)
    assert best == pytest.approx(0.75 * 0.25)
    for constant in (0.5, 0.7, 0.8, 1.0):
        assert brier(np.full(4, constant), right, weights) >= best


def test_calibration_error_by_hand() -> None:
    probability = np.array([0.95, 0.95, 0.15, 0.15, 1.0])
    right = np.array([True, False, False, False, True])
    weights = np.full(5, 0.2)
    bins = reliability(probability, right, weights)
    assert [row["count"] for row in bins] == [2, 3]
    expected = 0.4 * 0.15 + 0.6 * abs((0.95 + 0.95 + 1.0) / 3 - 2 / 3)
    assert calibration_error(probability, right, weights) == pytest.approx(expected)
    assert calibration_error(right.astype(float), right, weights) == 0.0


def test_abstain_curve_by_hand() -> None:
    score = np.array([3.0, 2.0, 1.0, 0.0])
    thresholds, lost, caught = abstain_curve(score, np.array([True, True, False, False]))
    np.testing.assert_array_equal(thresholds, [0, 1, 2, 3])
    np.testing.assert_array_equal(lost, [0, 0, 0, 0.5])
    np.testing.assert_array_equal(caught, [0, 0.5, 1, 1])
