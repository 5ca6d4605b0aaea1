"""The ridge solve: ``(G + lambda I) W = Q`` by Cholesky in float64.

Notation: E feature dimension, K columns.

The ridge is stated relative to ``trace(G) / E``, the mean eigenvalue, so that it survives changes
of E, of the feature scale and of the number of prompts. Nothing is added to the diagonal but the
ridge that was asked for: a factorisation that fails is an error that names one that works.
"""

from __future__ import annotations

import numpy as np

from asr.errors import RouterError
from asr.router.numerics import (
    Float64Array,
    NotPositiveDefiniteError,
    cholesky_lower,
    cholesky_solve,
    eigenvalues,
    reciprocal_condition,
)

#: Relative ridges tried, ascending, when a factorisation has failed.
_TRIED_RIDGES = tuple(10.0**power for power in range(-16, 3))


class RidgeFactor:
    """The Cholesky factor of ``G + lambda I``: solves for many right-hand sides.

    Cost E^3 / 3 once, then 2 E^2 per column.
    """

    def __init__(self, gram: Float64Array, absolute: float) -> None:
        """Factorise.

        Args:
            gram: (E, E) symmetric; only the lower triangle is read.
            absolute: lambda, at least 0, in the units of the Gram.

        Raises:
            RouterError: the ridge is negative or not finite, the Gram is not finite, or the matrix
                is not positive definite in float64 (names the smallest power of ten that works).
        """
        if not (np.isfinite(absolute) and absolute >= 0.0):
            raise RouterError(f"the ridge is {absolute:g}; it must be a finite number, 0 or more")
        shifted = _shifted(gram, absolute)
        try:
            self._factor = cholesky_lower(shifted)
        except NotPositiveDefiniteError:
            raise RouterError(_too_small(gram, absolute)) from None
        norm = float(np.abs(shifted).sum(axis=0).max())
        self._reciprocal_condition = reciprocal_condition(self._factor, norm)

    @property
    def condition(self) -> float:
        """LAPACK's estimate of the 1-norm condition number of ``G + lambda I``."""
        return 1.0 / self._reciprocal_condition if self._reciprocal_condition > 0 else float("inf")

    def solve(self, targets: Float64Array) -> Float64Array:
        """Return W (E, K) for the cross-correlation ``targets`` (E, K).

        Raises:
            RouterError: an entry of the targets is not finite.
        """
        if not np.isfinite(targets).all():
            raise RouterError("the feature sums are not finite; add the domain again")
        return np.ascontiguousarray(cholesky_solve(self._factor, targets))


def solve_ridge(gram: Float64Array, targets: Float64Array, absolute_ridge: float) -> Float64Array:
    """Return W (E, K) with ``(gram + absolute_ridge I) W = targets``, float64.

    Args:
        gram: (E, E) symmetric.
        targets: (E, K), the cross-correlation Q = X^T Y.
        absolute_ridge: lambda in the units of the Gram; see :func:`absolute_ridge`.

    Raises:
        RouterError: as :class:`RidgeFactor`, or targets that are not finite.
    """
    return RidgeFactor(gram, absolute_ridge).solve(targets)


def absolute_ridge(gram: Float64Array, relative: float) -> float:
    """Return ``relative * trace(gram) / E``: the ridge in the units of the Gram."""
    return float(relative * np.trace(gram) / gram.shape[0])


def backward_error(
    gram: Float64Array, ridge: float, weights: Float64Array, targets: Float64Array
) -> float:
    """Return how far W is from solving the system, relative to the system's size.

    ``|Q - (G + lambda I) W|_F / (|G + lambda I|_F |W|_F + |Q|_F)``, the normwise backward error
    (Rigal and Gaches); a few units of 1e-16 for a backward-stable solve whatever the conditioning.
    ``ridge`` is absolute.
    """
    residual = targets - gram @ weights - ridge * weights
    size = float(np.linalg.norm(_shifted(gram, ridge)) * np.linalg.norm(weights))
    scale = size + float(np.linalg.norm(targets))
    return float(np.linalg.norm(residual)) / scale if scale > 0.0 else 0.0


def condition_number(gram: Float64Array, ridge: float = 0.0) -> float:
    """Return the 2-norm condition number of ``G + ridge I`` from its eigenvalues; inf if singular.

    ``ridge`` is absolute. Costs an eigendecomposition: for tests and reports on small E.
    """
    values = eigenvalues(gram)
    smallest, largest = float(values[0]) + ridge, float(values[-1]) + ridge
    return largest / smallest if smallest > 0.0 else float("inf")


def _shifted(gram: Float64Array, ridge: float) -> Float64Array:
    shifted = np.array(gram, dtype=np.float64, order="F")
    shifted.flat[:: gram.shape[0] + 1] += ridge
    return shifted


def _too_small(gram: Float64Array, absolute: float) -> str:
    """The message for a failed factorisation: names the smallest relative ridge that works."""
    mean = float(np.trace(gram)) / gram.shape[0]
    if not np.isfinite(gram).all() or not mean > 0.0:
        return "the Gram matrix is empty or not finite; add the domains again"
    given = absolute / mean
    for relative in _TRIED_RIDGES:
        if relative <= given:
            continue
        try:
            cholesky_lower(_shifted(gram, relative * mean))
        except NotPositiveDefiniteError:
            continue
        return (
            f"the ridge {given:.3g} (relative to trace/E) is too small for these features: the"
            f" factorisation failed; the smallest that works is {relative:g}: set"
            f" router.ridge: {relative:g}"
        )
    return "the Gram matrix is not positive semidefinite, so no ridge works; add the domains again"
