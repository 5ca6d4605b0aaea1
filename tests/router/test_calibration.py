from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import RouterError
from asr.router import CalibrationBlock, conformal_threshold, fit_temperature, view_thresholds
from asr.router.calibration import negative_log_likelihood, prompts_needed


@pytest.mark.parametrize(
    ("count", "alpha", "position"),
    [(49, 0.02, 1), (48, 0.02, 0), (99, 0.02, 2), (99, 0.29, 29), (10, 0.0, 0), (10, 1.0, 10)],
)
def test_position(count: int, alpha: float, position: int) -> None:
    scores = np.random.default_rng(0).permutation(count) + 1.0
    assert conformal_threshold(scores, alpha) == (position if position else -math.inf)


@pytest.mark.parametrize(("count", "alpha"), [(20, 0.1), (60, 0.02), (100, 0.05), (33, 0.25)])
def test_coverage(count: int, alpha: float) -> None:
    """Over many draws the share of new scores below the threshold is k / (n + 1) <= alpha."""
    trials = 4000
    draws = np.random.default_rng(1).standard_t(3, (trials, count + 1))
    rejected = np.mean([row[-1] < conformal_threshold(row[:-1], alpha) for row in draws])
    expected = math.floor(alpha * (count + 1) + 1e-9) / (count + 1)
    assert expected <= alpha
    assert abs(rejected - expected) <= 4 * math.sqrt(alpha / trials)


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.floats(0, 1))
def test_own_scores_below_never_exceed_the_share(scores: list[float], alpha: float) -> None:
    threshold = conformal_threshold(scores, alpha)
    assert sum(score < threshold for score in scores) <= alpha * (len(scores) + 1) + 1e-6


@given(st.floats(0.001, 0.5))
def test_prompts_needed(alpha: float) -> None:
    needed = prompts_needed(alpha)
    assert math.isfinite(conformal_threshold(np.zeros(needed), alpha))
    if needed > 1:
        assert conformal_threshold(np.zeros(needed - 1), alpha) == -math.inf


def test_bad_arguments_of_threshold() -> None:
    with pytest.raises(ValueError, match="alpha"):
        conformal_threshold([1.0], 1.5)
    with pytest.raises(ValueError, match="finite"):
        conformal_threshold([np.nan], 0.5)


def test_threshold_per_view() -> None:
    scores = {"bare": np.arange(99.0), "templated": np.arange(99.0) + 10}
    assert view_thresholds(scores, 0.02) == {"bare": 1.0, "templated": 11.0}
    assert set(view_thresholds(scores, 0.0).values()) == {-math.inf}


def test_temperature_is_the_minimum() -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((400, 4))
    gumbel = generator.gumbel(size=scores.shape)
    labels = (scores / 0.3 + gumbel).argmax(axis=1)  # drawn from a softmax at T = 0.3
    temperature = fit_temperature(scores, labels)
    assert 0.24 < temperature < 0.38
    equal = np.full(400, 1 / 400)
    best = negative_log_likelihood(scores, labels, temperature, equal)
    for factor in (0.97, 1.03):
        assert best < negative_log_likelihood(scores, labels, temperature * factor, equal)


def test_temperature_weights() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = np.array([0, 1, 1])
    doubled = np.concatenate([scores, scores[:1]]), np.array([0, 1, 1, 0])
    weighted = fit_temperature(scores, labels, np.array([2.0, 1.0, 1.0]))
    assert weighted == pytest.approx(fit_temperature(*doubled), rel=1e-4)


def test_temperature_without_anything_to_fit() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0
    assert fit_temperature(np.ones((5, 1)), np.zeros(5, dtype=int)) == 1.0


def test_block_is_a_read_only_float32_copy() -> None:
    given_states = np.ones((3, 2, 4))
    block = CalibrationBlock(given_states, ["templated", "bare"])
    given_states[:] = 7
    assert block.pooled.dtype == np.float32
    assert block.pooled.max() == 1.0
    assert (block.prompts, block.hidden_size, block.nbytes) == (3, 4, 96)
    with pytest.raises(ValueError, match="read-only"):
        block.pooled[0, 0, 0] = 2.0


def test_blocks_add() -> None:
    first, second = (
        CalibrationBlock(np.ones((2, 1, 3)), ["a"]),
        CalibrationBlock(np.zeros((1, 1, 3)), ["a"]),
    )
    np.testing.assert_array_equal((first + second).pooled[:, 0, 0], [1, 1, 0])
    message = (
        "calibration blocks differ: views a of 3 features and b of 3; make both with the same"
        " views and base"
    )
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        first + CalibrationBlock(np.ones((2, 1, 3)), ["b"])


def test_bad_blocks() -> None:
    with pytest.raises(ValueError, match=r"need \(n, 1, d\)"):
        CalibrationBlock(np.zeros((2, 2, 3)), ["a"])
    with pytest.raises(ValueError, match="view names repeat"):
        CalibrationBlock(np.zeros((2, 2, 3)), ["a", "a"])
    with pytest.raises(RouterError, match="not finite in row 1, 0"):
        CalibrationBlock([[[0.0]], [[np.inf]]], ["a"])
