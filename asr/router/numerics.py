"""The few LAPACK, BLAS and optimiser routines the router needs, with types and in-place forms.

All matrices are float64. A *lower* matrix is Fortran-ordered and only its lower triangle is
meaningful: the symmetric routines read one triangle, so an update costs half a general product
and what it keeps is exactly symmetric by construction.

scipy carries no type information. It is looked up by name here, in one place, so that the rest of
the package is checked strictly whether or not stubs for it are installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

_blas: Any = importlib.import_module("scipy.linalg.blas")
_lapack: Any = importlib.import_module("scipy.linalg.lapack")

#: Columns mirrored at a time; bounds the temporary of :func:`mirror_lower`.
_MIRROR_BLOCK = 1024


class NotPositiveDefiniteError(ArithmeticError):
    """A Cholesky factorisation met a pivot that is not positive."""


def zeros_lower(size: int) -> Float64Array:
    """Return a zero (size, size) float64 matrix in Fortran order."""
    return np.zeros((size, size), dtype=np.float64, order="F")


def rank_update(lower: Float64Array, rows: Float64Array, alpha: float = 1.0) -> Float64Array:
    """Return ``lower + alpha * rows^T rows`` in the memory of ``lower`` (BLAS dsyrk).

    Args:
        lower: (E, E) Fortran-ordered; its lower triangle is read and written.
        rows: (m, E); C-ordered rows are passed without a copy.
        alpha: factor of the added product.
    """
    if rows.shape[0] == 0:
        return lower
    columns = np.ascontiguousarray(rows, dtype=np.float64).T
    updated: Float64Array = _blas.dsyrk(alpha, columns, beta=1.0, c=lower, lower=1, overwrite_c=1)
    return updated


def symmetric_product(lower: Float64Array, right: Float64Array) -> Float64Array:
    """Return ``A @ right``, where A is the symmetric matrix whose lower triangle is given.

    Args:
        lower: (E, E) Fortran-ordered.
        right: (E, m).
    Returns: (E, m), Fortran-ordered.
    """
    if right.shape[1] == 0:
        return np.zeros(right.shape, dtype=np.float64, order="F")
    product: Float64Array = _blas.dsymm(1.0, lower, np.asfortranarray(right), side=0, lower=1)
    return product


def mirror_lower(lower: Float64Array) -> Float64Array:
    """Return the full symmetric matrix of a lower one, as a new Fortran-ordered array."""
    full = np.array(lower, dtype=np.float64, order="F")
    size = full.shape[0]
    for start in range(0, size, _MIRROR_BLOCK):
        stop = min(start + _MIRROR_BLOCK, size)
        full[start:stop, stop:] = full[stop:, start:stop].T
        block = full[start:stop, start:stop]
        below = np.tril(block)
        full[start:stop, start:stop] = below + np.tril(block, -1).T
    return full


def cholesky_lower(matrix: Float64Array) -> Float64Array:
    """Return L with ``L L^T = matrix`` (LAPACK dpotrf; reads the lower triangle only).

    Raises:
        NotPositiveDefiniteError: a pivot is not positive, or an entry is not finite.
    """
    factor, info = _lapack.dpotrf(matrix, lower=1, clean=1, overwrite_a=0)
    if info != 0 or not np.isfinite(factor).all():
        raise NotPositiveDefiniteError(f"leading minor {info} of {matrix.shape[0]}")
    result: Float64Array = factor
    return result


def cholesky_solve(factor: Float64Array, right: Float64Array) -> Float64Array:
    """Return ``(L L^T)^-1 right`` (LAPACK dpotrs); ``right`` is (E, K)."""
    if right.shape[1] == 0:
        return np.zeros(right.shape, dtype=np.float64, order="F")
    solution, info = _lapack.dpotrs(factor, right, lower=1)
    if info != 0:  # only an argument error is possible here
        raise ValueError(f"dpotrs: argument {-info} is invalid")
    result: Float64Array = solution
    return result


def triangular_solve(
    factor: Float64Array, right: Float64Array, transposed: bool = False
) -> Float64Array:
    """Return ``L^-1 right``, or ``L^-T right``, for a lower-triangular L (LAPACK dtrtrs)."""
    solution, info = _lapack.dtrtrs(factor, right, lower=1, trans=int(transposed))
    if info != 0:
        raise NotPositiveDefiniteError(f"zero diagonal entry {info}")
    result: Float64Array = solution
    return result


def reciprocal_condition(factor: Float64Array, one_norm: float) -> float:
    """Return LAPACK's estimate (dpocon) of 1 / cond_1 of ``L L^T``, given its 1-norm."""
    estimate, info = _lapack.dpocon(factor, one_norm, uplo="L")
    if info != 0:
        raise ValueError(f"dpocon: argument {-info} is invalid")
    return float(estimate)


def pivoted_cholesky(gram: Float64Array) -> Float64Array:
    """Return F (r, E) with ``F^T F = gram`` for a positive semidefinite matrix (LAPACK dpstrf).

    r is the numerical rank. What is left out is below ``E * eps * max(diagonal)``: the size of the
    rounding that the Gram itself carries. Costs at most E^3 / 3 operations, a small part of an
    eigendecomposition.
    """
    factor, pivots, rank, info = _lapack.dpstrf(gram, tol=-1.0, lower=1, overwrite_a=0)
    if info < 0:
        raise ValueError(f"dpstrf: argument {-info} is invalid")
    size = gram.shape[0]
    rows = np.zeros((rank, size), dtype=np.float64)
    # dpstrf: P^T G P = L L^T with P[pivots[i] - 1, i] = 1, so row i of L is feature pivots[i]
    rows[:, np.asarray(pivots) - 1] = np.tril(factor)[:, :rank].T
    return rows


def eigenvalues(matrix: Float64Array) -> Float64Array:
    """Return the eigenvalues of a symmetric matrix in ascending order (reads the lower half)."""
    return np.asarray(np.linalg.eigvalsh(matrix, UPLO="L"), dtype=np.float64)


def minimise_bounded(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the argument in [low, high] at which Brent's bounded search finds the least value."""
    optimiser: Any = importlib.import_module("scipy.optimize")  # slow to import, so only when used
    found = optimiser.minimize_scalar(
        function, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return float(found.x)
