from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import RouterError
from asr.router import (
    DomainStatistics,
    FeatureMap,
    RecursiveLeastSquares,
    condition_number,
    solve_ridge,
    views_as_rows,
)


def labelled_rows(seed: int, rows: int, hidden: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, columns, rows)
    centres = generator.standard_normal((columns, hidden))
    pooled = centres[labels] + generator.standard_normal((rows, hidden))
    return FeatureMap(hidden)(pooled), labels


def direct(features: np.ndarray, labels: np.ndarray, columns: int, ridge: float) -> np.ndarray:
    targets = np.eye(columns)[labels]
    return solve_ridge(features.T @ features, features.T @ targets, ridge)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@given(
    cuts=st.lists(st.integers(0, 120), max_size=6),
    order=st.integers(0, 1000),
    block_rows=st.sampled_from([1, 7, 64, 1024]),
    ridge=st.sampled_from([1e-3, 1.0, 100.0]),
)
@settings(max_examples=40, deadline=None)
def test_equals_direct_solve(cuts: list[int], order: int, block_rows: int, ridge: float) -> None:
    """Any batches, any order of rows, columns that come into being on the way."""
    features, labels = labelled_rows(0, 120, 20, 4)
    expected = direct(features, labels, 4, ridge)
    shuffled = np.random.default_rng(order).permutation(120)
    features, labels = features[shuffled], labels[shuffled]
    recursion = RecursiveLeastSquares(21, ridge, block_rows)
    edges = [0, *sorted(cuts), 120]
    for start, stop in pairwise(edges):
        recursion.partial_fit(features[start:stop], labels[start:stop])
    gram = features.T @ features
    assert condition_number(gram, ridge) <= 1e7
    assert recursion.n_samples_seen_ == 120
    assert relative(recursion.coef_, expected) <= 1e-9
    inverse = np.linalg.inv(gram + ridge * np.eye(21))
    assert relative(recursion.inverse_, inverse) <= 1e-9
    np.testing.assert_array_equal(recursion.inverse_, recursion.inverse_.T)


def test_current_after_every_batch() -> None:
    features, labels = labelled_rows(1, 90, 12, 3)
    labels = np.sort(labels)
    recursion = RecursiveLeastSquares(13, 0.5)
    for stop in range(15, 91, 15):
        recursion.partial_fit(features[stop - 15 : stop], labels[stop - 15 : stop])
        columns = int(labels[stop - 1]) + 1
        expected = direct(features[:stop], labels[:stop], columns, 0.5)
        assert relative(recursion.coef_, expected) <= 1e-11


def test_at_condition_ten_million() -> None:
    generator = np.random.default_rng(2)
    features = generator.standard_normal((300, 40)) * 10.0 ** np.linspace(0, -4, 40)
    labels = generator.integers(0, 3, 300)
    ridge = 6e-5
    assert 1e6 < condition_number(features.T @ features, ridge) <= 1e7
    recursion = RecursiveLeastSquares(40, ridge, block_rows=32).partial_fit(features, labels)
    assert relative(recursion.coef_, direct(features, labels, 3, ridge)) <= 1e-9


@pytest.mark.parametrize("rows", [8, 200])
def test_absorbing_statistics_equals_fitting_rows(rows: int) -> None:
    """Domain after domain, from factors and from Grams, with a revisit of the first domain."""
    features, labels = labelled_rows(3, 3 * rows, 24, 2)
    owners = np.repeat([0, 1, 0], rows)
    absorbed = RecursiveLeastSquares(25, 1.0, block_rows=50)
    for visit in range(3):
        own = features[visit * rows : (visit + 1) * rows]
        statistics = DomainStatistics(25).update(own[:, None])
        assert statistics.is_factored == (rows == 8)
        targets = np.zeros((25, max(1, absorbed.coef_.shape[1], owners[visit * rows] + 1)))
        targets[:, owners[visit * rows]] = statistics.feature_sums[0]
        absorbed.absorb(statistics.factor(), targets, samples=rows)
    assert absorbed.n_samples_seen_ == 3 * rows
    assert relative(absorbed.coef_, direct(features, owners, 2, 1.0)) <= 1e-10
    fitted = RecursiveLeastSquares(25, 1.0).partial_fit(features, owners)
    assert relative(absorbed.coef_, fitted.coef_) <= 1e-10
    fitted.partial_fit(features, labels)
    absorbed.partial_fit(features, labels)  # rows and statistics may be mixed
    assert relative(absorbed.coef_, fitted.coef_) <= 1e-10


def test_single_label_grows_zero_columns() -> None:
    features, _ = labelled_rows(4, 10, 6, 2)
    recursion = RecursiveLeastSquares(7, 1.0).partial_fit(features, 2)
    assert recursion.coef_.shape == (7, 3)
    assert not recursion.coef_[:, :2].any()
    assert recursion.coef_[:, 2].any()


def test_views_as_rows() -> None:
    views = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(views_as_rows(views)[4], views[1, 1])
    with pytest.raises(ValueError, match=r"need \(n, V, E\)"):
        views_as_rows(np.zeros((2, 3)))


def test_weights_are_refused() -> None:
    with pytest.raises(RouterError, match=r"^solver 'rls' counts every row once and cannot follow"):
        RecursiveLeastSquares(3, 1.0).partial_fit(np.zeros((2, 3)), 0, sample_weight=np.ones(2))


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("inf"), float("nan")])
def test_ridge_must_be_positive(ridge: float) -> None:
    with pytest.raises(RouterError, match="starts from the inverse of the ridge, so it must be ab"):
        RecursiveLeastSquares(3, ridge)


def test_lost_definiteness_is_an_error() -> None:
    """A ridge far below the rounding of the rows: R stops being positive definite."""
    features = np.random.default_rng(5).standard_normal((400, 1)) @ np.ones((1, 30)) * 1e6
    features += np.random.default_rng(6).standard_normal((400, 30)) * 1e-6
    recursion = RecursiveLeastSquares(30, 1e-14, block_rows=4)
    with pytest.raises(
        RouterError, match=r"lost positive definiteness at router\.absolute_ridge: 1e-"
    ):
        for _ in range(20):
            recursion.partial_fit(features, 0)


def test_bad_rows() -> None:
    recursion = RecursiveLeastSquares(3, 1.0)
    with pytest.raises(RouterError, match="features are not finite in row 1"):
        recursion.partial_fit([[0, 0, 0], [0, np.inf, 0]], 0)
    with pytest.raises(RouterError, match="feature sums are not finite"):
        recursion.absorb(np.zeros((1, 3)), np.full((3, 1), np.nan), 1)
    with pytest.raises(ValueError, match=r"need \(m, 3\)"):
        recursion.partial_fit(np.zeros((1, 4)), 0)
    with pytest.raises(ValueError, match="domain_index"):
        recursion.partial_fit(np.zeros((1, 3)), [0, 1])
    with pytest.raises(ValueError, match=r"need \(3, K\)"):
        recursion.absorb(np.zeros((1, 3)), np.zeros((2, 1)), 1)
    with pytest.raises(ValueError, match="must be >= 1"):
        RecursiveLeastSquares(0, 1.0)
    recursion.partial_fit(np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match="targets have 1 columns of 2"):
        recursion.absorb(np.zeros((1, 3)), np.zeros((3, 1)), 1)
    assert recursion.n_samples_seen_ == 1
