"""Recursive least squares: ridge regression that is current after every batch.

Notation: m rows of a batch, E feature dimension, K columns, X (m, E), Y (m, K) one-hot.

    R_0 = I / lambda,  W_0 = 0
    R  <- R - (R X^T) (I + X R X^T)^-1 (R X^T)^T
    W  <- W + R X^T (Y - X W)                          with the new R

Source: C-RLS of ACIL (arXiv 2205.14922), DS-AL and Any-SSR (arXiv 2503.13575). A column that is new
starts at zero, which is exact: every earlier row has target 0 for it. After any batches in any
order, W is that of one ridge regression over all rows with absolute ridge lambda and unit weights.

How it is computed here. With U = R X^T and the Cholesky factor L of I + X R X^T, the update is
``R -= T^T T`` for T = L^-1 U^T: a symmetric rank-m update that touches one triangle, so R stays
symmetric by construction and nothing needs to be re-symmetrised; and the new R X^T is
(L^-T T)^T, which needs no second product with R. A batch costs 3 m E^2 + O(m^2 E) operations and no
E x E x E product; memory E^2 + 2 m E.

What it cannot follow: a relative ridge (it moves with the trace) and re-weighting (R would have to
be made anew). Those are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from asr.errors import RouterError
from asr.router.numerics import (
    Float64Array,
    NotPositiveDefiniteError,
    cholesky_lower,
    mirror_lower,
    rank_update,
    symmetric_product,
    triangular_solve,
    zeros_lower,
)

#: Rows taken at once. Above this the m x m part costs more than it saves in passes over R.
DEFAULT_BLOCK_ROWS = 1024


def views_as_rows(features: ArrayLike) -> Float64Array:
    """Return (n, V, E) as (n V, E): in the recursion every view is one row of weight 1."""
    views = np.asarray(features, dtype=np.float64)
    if views.ndim != 3:
        raise ValueError(f"features have shape {views.shape}; need (n, V, E)")
    return views.reshape(-1, views.shape[2])


class RecursiveLeastSquares:
    """Ridge regression on one-hot targets with an absolute ridge, updated row block by row block.

    Complexity: a batch of m rows costs 3 m E^2 operations, whatever came before; the state is
    8 E^2 bytes for R and 8 E K for W.

    Attributes:
        dimension: E.
        ridge_absolute: lambda, in the units of the Gram of unit-weight rows.
        coef_: W (E, K), current after every call.
        n_samples_seen_: rows folded in so far.
    """

    def __init__(
        self, dimension: int, ridge_absolute: float, block_rows: int = DEFAULT_BLOCK_ROWS
    ) -> None:
        """Start from R = I / lambda and no column.

        Raises:
            ValueError: ``dimension`` or ``block_rows`` below 1.
            RouterError: the ridge is not a positive finite number.
        """
        if dimension < 1 or block_rows < 1:
            raise ValueError(f"dimension {dimension} and block_rows {block_rows} must be >= 1")
        if not (np.isfinite(ridge_absolute) and ridge_absolute > 0.0):
            raise RouterError(
                f"router.absolute_ridge is {ridge_absolute:g}; solver 'rls' starts from the inverse"
                " of the ridge, so it must be above 0: set router.absolute_ridge: 1.0"
            )
        self.dimension = dimension
        self.ridge_absolute = float(ridge_absolute)
        self.block_rows = block_rows
        self.n_samples_seen_ = 0
        self.coef_: Float64Array = np.zeros((dimension, 0), dtype=np.float64)
        self._lower = zeros_lower(dimension)
        self._lower.flat[:: dimension + 1] = 1.0 / self.ridge_absolute

    @property
    def inverse_(self) -> Float64Array:
        """R (E, E) = (X^T X + lambda I)^-1, exactly symmetric. A new array."""
        return mirror_lower(self._lower)

    def partial_fit(
        self,
        features: ArrayLike,
        domain_index: int | Sequence[int] | np.ndarray,
        sample_weight: object = None,
    ) -> RecursiveLeastSquares:
        """Fold in rows of weight 1.

        Args:
            features: (m, E).
            domain_index: the column whose target is 1, for all rows or (m,) integers. Columns up
                to the largest index come into being as zeros.
            sample_weight: must be None.
        Returns: self.

        Raises:
            ValueError: a shape or an index that does not fit.
            RouterError: weights are given, a row is not finite, or the update failed numerically.
        """
        if sample_weight is not None:
            raise RouterError(
                "solver 'rls' counts every row once and cannot follow sample weights; use"
                " router.solver: direct"
            )
        rows = self._rows(features)
        columns = np.asarray(domain_index)
        if columns.ndim == 0:
            columns = np.full(rows.shape[0], int(columns))
        if columns.shape != (rows.shape[0],) or (len(columns) and columns.min() < 0):
            raise ValueError(f"domain_index must be >= 0, one integer or ({rows.shape[0]},)")
        if len(columns):
            self._grow(int(columns.max()) + 1)
        for start in range(0, rows.shape[0], self.block_rows):
            block = rows[start : start + self.block_rows]
            error = -(block @ self.coef_)
            error[np.arange(len(block)), columns[start : start + self.block_rows]] += 1.0
            self.coef_ += self._fold(block) @ error
        self.n_samples_seen_ += rows.shape[0]
        return self

    def absorb(self, factor: ArrayLike, targets: ArrayLike, samples: int) -> RecursiveLeastSquares:
        """Fold in a whole domain from its statistics; needs neither its rows nor older statistics.

        With G = F^T F and the domain's cross-correlation q, R moves by the rows of F, and

            W_new = R_new (R_old^-1 W_old + q) = W_old - R_new F^T (F W_old) + R_new q.

        Args:
            factor: F (r, E), :meth:`DomainStatistics.factor`, scaled to unit-weight rows.
            targets: q (E, K'), K' at least the columns so far; new columns come into being.
            samples: how many rows the statistics stand for.
        Returns: self.

        Raises:
            ValueError: a shape that does not fit.
            RouterError: an entry is not finite, or the update failed numerically.
        """
        rows = self._rows(factor)
        cross = np.asarray(targets, dtype=np.float64)
        if cross.ndim != 2 or cross.shape[0] != self.dimension:
            raise ValueError(f"targets have shape {cross.shape}; need ({self.dimension}, K)")
        if cross.shape[1] < self.coef_.shape[1]:
            raise ValueError(f"targets have {cross.shape[1]} columns of {self.coef_.shape[1]}")
        if not np.isfinite(cross).all():
            raise RouterError("the feature sums are not finite; add the domain again")
        self._grow(cross.shape[1])
        for start in range(0, rows.shape[0], self.block_rows):
            block = rows[start : start + self.block_rows]
            predicted = block @ self.coef_
            self.coef_ -= self._fold(block) @ predicted
        self.coef_ += symmetric_product(self._lower, cross)
        self.n_samples_seen_ += samples
        return self

    def _rows(self, features: ArrayLike) -> Float64Array:
        rows = np.ascontiguousarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise ValueError(f"features have shape {rows.shape}; need (m, {self.dimension})")
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise RouterError(f"features are not finite in row {int(np.argmin(finite))}")
        return rows

    def _grow(self, columns: int) -> None:
        missing = columns - self.coef_.shape[1]
        if missing > 0:
            self.coef_ = np.pad(self.coef_, ((0, 0), (0, missing)))

    def _fold(self, block: Float64Array) -> Float64Array:
        """Update R by a block of rows and return the gain ``R_new X^T`` (E, m)."""
        moved = symmetric_product(self._lower, block.T)  # U = R X^T
        inner = block @ moved
        inner.flat[:: len(block) + 1] += 1.0
        try:
            factor = cholesky_lower(inner)
        except NotPositiveDefiniteError:
            raise RouterError(
                f"recursive least squares lost positive definiteness at router.absolute_ridge:"
                f" {self.ridge_absolute:g}; set a larger one, or router.solver: direct"
            ) from None
        half = triangular_solve(factor, moved.T)  # T = L^-1 U^T
        self._lower = rank_update(self._lower, half, alpha=-1.0)
        # R_new X^T = U (I + X R X^T)^-1 = (L^-T T)^T, so no second product with R
        gain: Float64Array = triangular_solve(factor, half, transposed=True).T
        return gain
