from __future__ import annotations

import numpy as np
import pytest

from asr.errors import RouterError
from asr.router import RIDGE_GRID, CalibrationBlock, Columns, FeatureMap, choose_ridge
from asr.router.evaluation import Evaluation, evaluate
from asr.router.ridge import _pick

COLUMNS = Columns(("a", "b"), (0, 1))


def evaluation(worst: float, loss: float, error: float = 0.01) -> Evaluation:
    return Evaluation({"bare": worst, "templated": 1.0}, {}, error, 1.0, loss)


def test_grid() -> None:
    assert len(RIDGE_GRID) == 13
    assert (RIDGE_GRID[0], RIDGE_GRID[-1]) == (1e-6, 1.0)
    assert list(RIDGE_GRID) == sorted(RIDGE_GRID)


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        # clearly better accuracy of the worst view wins over the loss
        ([(1e-3, evaluation(0.80, 0.1)), (1e-2, evaluation(0.90, 0.5))], 1e-2),
        # within one standard error the loss decides
        ([(1e-3, evaluation(0.895, 0.1)), (1e-2, evaluation(0.90, 0.5))], 1e-3),
        # equal in both: the larger ridge
        ([(1e-3, evaluation(0.90, 0.1)), (1e-2, evaluation(0.90, 0.1))], 1e-2),
    ],
)
def test_criterion(rows: list[tuple[float, Evaluation]], chosen: float) -> None:
    assert _pick(rows) == chosen
    assert _pick(rows[::-1]) == chosen


def test_evaluation_is_balanced_over_domains() -> None:
    right, wrong = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    scores = {
        "a": {"bare": np.repeat(right, 8, axis=0), "templated": right},
        "b": {"bare": np.concatenate([wrong, right])},  # for b, `wrong` is the right answer
    }
    found = evaluate(scores, COLUMNS)
    assert found.accuracy == {"bare": 0.75, "templated": 1.0}
    assert found.domain_accuracy == {"a": {"bare": 1.0, "templated": 1.0}, "b": {"bare": 0.5}}
    assert found.worst_accuracy == 0.75
    smoothed = [(9 / 10, 8), (2 / 4, 2)]
    expected = np.sqrt(sum(p * (1 - p) / n for p, n in smoothed)) / 2
    assert found.standard_error == pytest.approx(expected)
    with pytest.raises(ValueError, match="no calibration scores"):
        evaluate({}, COLUMNS)


def noisy_problem() -> tuple[np.ndarray, np.ndarray, dict[str, CalibrationBlock], FeatureMap]:
    """Few prompts in many dimensions: a tiny ridge fits the noise."""
    generator = np.random.default_rng(0)
    feature_map = FeatureMap(80)
    centres = generator.standard_normal((2, 80)) * 0.25
    train = centres[:, None] + generator.standard_normal((2, 45, 80))
    held = centres[:, None] + generator.standard_normal((2, 300, 80))
    rows = feature_map(train)
    gram = sum(part.T @ part for part in rows)
    blocks = {
        name: CalibrationBlock(held[index][:, None], ["bare"]) for index, name in enumerate("ab")
    }
    return np.asarray(gram), rows.sum(axis=1).T, blocks, feature_map


def test_overfitting_ridge_is_avoided() -> None:
    gram, targets, blocks, feature_map = noisy_problem()
    choice = choose_ridge(gram, targets, COLUMNS, blocks, feature_map)
    assert choice.ridge >= 0.01
    by_ridge = {row.ridge: row for row in choice.table}
    assert by_ridge[choice.ridge].accuracy["bare"] > by_ridge[1e-6].accuracy["bare"] + 0.05
    assert choose_ridge(gram, targets, COLUMNS, blocks, feature_map) == choice


def test_ridges_that_fail_stay_in_the_table() -> None:
    _, targets, blocks, feature_map = noisy_problem()
    rows = np.random.default_rng(1).standard_normal((20, 81))
    singular = rows.T @ rows
    choice = choose_ridge(singular, targets, COLUMNS, blocks, feature_map, [1e-30, 1e-2])
    assert choice.ridge == 1e-2
    assert (choice.table[0].accuracy, choice.table[0].loss) == ({}, None)
    with pytest.raises(RouterError, match="too small for these features"):
        choose_ridge(singular, targets, COLUMNS, blocks, feature_map, [1e-30])
    with pytest.raises(ValueError, match="grid of ridges is empty"):
        choose_ridge(singular, targets, COLUMNS, blocks, feature_map, [])
