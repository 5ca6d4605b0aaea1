from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import RouterError
from asr.router import absolute_ridge, backward_error, condition_number, solve_ridge
from asr.router.solve import RidgeFactor


def system(seed: int, size: int, columns: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """A Gram whose eigenvalues span ``spread`` decades, and a cross-correlation."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.standard_normal((size, size)))
    rows = (basis * 10.0 ** np.linspace(0, -spread / 2, size)).T
    return rows.T @ rows, generator.standard_normal((size, columns))


@given(size=st.integers(1, 60), spread=st.floats(0, 6.5), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_exact_where_well_conditioned(size: int, spread: float, seed: int) -> None:
    gram, targets = system(seed, size, 3, spread)
    ridge = absolute_ridge(gram, 1e-9)
    found = solve_ridge(gram, targets, ridge)
    expected = np.linalg.solve(gram + ridge * np.eye(size), targets)
    assert condition_number(gram, ridge) <= 1e7
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


@given(size=st.integers(2, 60), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_backward_stable_where_ill_conditioned(size: int, seed: int) -> None:
    gram, targets = system(seed, size, 3, 14.0)
    ridge = absolute_ridge(gram, 1e-11)
    found = solve_ridge(gram, targets, ridge)
    assert condition_number(gram, ridge) > 1e9
    assert backward_error(gram, ridge, found, targets) <= 1e-14


def test_backward_error_sees_a_wrong_solution() -> None:
    gram, targets = system(0, 20, 2, 3.0)
    found = solve_ridge(gram, targets, 0.1)
    assert backward_error(gram, 0.1, found, targets) < 1e-15
    assert backward_error(gram, 0.1, found * (1 + 1e-6), targets) > 1e-10
    assert backward_error(gram, 0.2, found, targets) > 1e-4


def test_ridge_is_relative_to_the_mean_eigenvalue() -> None:
    gram = np.diag([1.0, 2.0, 9.0])
    assert absolute_ridge(gram, 0.5) == pytest.approx(2.0)
    np.testing.assert_allclose(solve_ridge(gram, np.eye(3), 2.0), np.diag([1 / 3, 1 / 4, 1 / 11]))


def test_only_what_was_asked_for_is_added() -> None:
    gram = np.diag([1.0, 1e-12])
    np.testing.assert_allclose(solve_ridge(gram, np.eye(2), 0.0), np.diag([1.0, 1e12]), rtol=1e-15)


def test_condition_estimate() -> None:
    gram, _ = system(1, 30, 1, 4.0)
    exact = np.linalg.cond(gram + 1e-3 * np.eye(30), 1)
    assert exact / 3 <= RidgeFactor(gram, 1e-3).condition <= exact * 1.01
    assert condition_number(np.diag([4.0, 1.0]), 0.0) == pytest.approx(4.0)
    assert condition_number(np.diag([4.0, 0.0])) == np.inf


def test_failure_names_the_smallest_ridge_that_works() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 40))
    gram = rows.T @ rows
    with pytest.raises(RouterError) as caught:
        solve_ridge(gram, np.zeros((40, 1)), 0.0)
    message = str(caught.value)
    found = re.search(
        r"^the ridge 0 \(relative to trace/E\) is too small for these features: the factorisation"
        r" failed; the smallest that works is (\S+): set router\.ridge: \1$",
        message,
    )
    assert found, message
    named = float(found[1])
    assert solve_ridge(gram, np.zeros((40, 1)), absolute_ridge(gram, named)).shape == (40, 1)
    with pytest.raises(RouterError):
        solve_ridge(gram, np.zeros((40, 1)), absolute_ridge(gram, named / 10))


@pytest.mark.parametrize(
    ("gram", "ridge", "message"),
    [
        (np.eye(2), -1.0, "the ridge is -1; it must be a finite number, 0 or more"),
        (np.eye(2), float("nan"), "the ridge is nan; it must be a finite number, 0 or more"),
        (np.zeros((2, 2)), 0.0, "the Gram matrix is empty or not finite; add the domains again"),
        (
            np.array([[np.nan, 0], [0, 1.0]]),
            1.0,
            "the Gram matrix is empty or not finite; add the domains again",
        ),
        (
            np.array([[1e6, 0], [0, -9e5]]),
            1.0,
            "the ridge 2e-05 (relative to trace/E) is too small for these features: the"
            " factorisation failed; the smallest that works is 100: set router.ridge: 100",
        ),
        (
            np.array([[1.0, 0], [0, -0.999]]),
            0.0,
            "the Gram matrix is not positive semidefinite, so no ridge works; add the domains"
            " again",
        ),
    ],
)
def test_messages(gram: np.ndarray, ridge: float, message: str) -> None:
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        solve_ridge(gram, np.zeros((2, 1)), ridge)


def test_non_finite_targets() -> None:
    with pytest.raises(RouterError, match="the feature sums are not finite"):
        solve_ridge(np.eye(2), np.full((2, 1), np.inf), 1.0)
