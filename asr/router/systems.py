"""From the statistics of the kept domains to the weights, directly or recursively.

Notation: E feature dimension, C columns of W (one per class and prototype with prompts), V views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from asr.errors import RouterError
from asr.router.numerics import Float64Array, mirror_lower, zeros_lower
from asr.router.recursive import RecursiveLeastSquares
from asr.router.solve import RidgeFactor, absolute_ridge, backward_error
from asr.router.statistics import DomainStatistics


@dataclass(frozen=True)
class Solution:
    """Weights and how well they solve their system.

    Attributes:
        weights: W (E, C).
        ridge: relative to trace(G) / E.
        absolute_ridge: in the units of the summed Gram.
        condition: 1-norm condition number of ``G + lambda I``.
        backward_error: normwise.
    """

    weights: Float64Array
    ridge: float
    absolute_ridge: float
    condition: float
    backward_error: float


def sum_statistics(
    statistics: Mapping[str, DomainStatistics], weights: Mapping[str, float]
) -> tuple[Float64Array, Float64Array]:
    """Return the summed Gram (E, E) and the cross-correlation Q (E, C), classes in name order.

    Args:
        statistics: by name; all of one dimension.
        weights: factors by name; 1 for names left out.
    """
    names = sorted(statistics)
    lower = zeros_lower(statistics[names[0]].dimension)
    targets: list[Float64Array] = []
    for name in names:
        weight = weights.get(name, 1.0)
        lower = statistics[name].add_gram_to(lower, weight)
        targets.append(weight * _cross(statistics[name]))
    return mirror_lower(lower), np.concatenate(targets, axis=1)


def solve_summed(gram: Float64Array, targets: Float64Array, relative: float) -> Solution:
    """Solve at a relative ridge by Cholesky.

    Raises:
        RouterError: the ridge is too small to factorise.
    """
    ridge = absolute_ridge(gram, relative)
    factor = RidgeFactor(gram, ridge)
    solved = factor.solve(targets)
    error = backward_error(gram, ridge, solved, targets)
    return Solution(solved, relative, ridge, factor.condition, error)


def solve_recursively(
    statistics: Mapping[str, DomainStatistics], ridge_absolute: float
) -> Solution:
    """Fold in class after class, in name order, by recursive least squares.

    In the recursion every view is a row of weight 1, where statistics weigh it 1/V. With one V for
    all rows that is the statistics times V. (With different V it would weigh the prompts of one
    domain more than another's, which recursive least squares is not to do unasked.)

    Raises:
        RouterError: domains with different numbers of views; or a numerical failure.
    """
    names = sorted(statistics)
    counts = sorted({count for name in names for count in statistics[name].view_counts})
    if len(counts) != 1:
        listing = ", ".join(
            f"{name} {'/'.join(map(str, statistics[name].view_counts))}" for name in names
        )
        raise RouterError(
            "solver 'rls' counts every view as one row and needs the same number of views in every"
            f" domain (there are: {listing}); set router.solver: direct"
        )
    views = counts[0]
    recursion = RecursiveLeastSquares(statistics[names[0]].dimension, ridge_absolute)
    for name in names:
        cross = views * _cross(statistics[name])
        targets = np.pad(cross, ((0, 0), (recursion.coef_.shape[1], 0)))
        factor = np.sqrt(float(views)) * statistics[name].factor()
        recursion.absorb(factor, targets, samples=statistics[name].rows)
    gram, targets = sum_statistics(statistics, dict.fromkeys(names, float(views)))
    solved = np.ascontiguousarray(recursion.coef_)
    error = backward_error(gram, ridge_absolute, solved, targets)
    mean = float(np.trace(gram)) / gram.shape[0]
    gram.flat[:: gram.shape[0] + 1] += ridge_absolute
    condition = _one_norm(gram) * _one_norm(recursion.inverse_)
    return Solution(solved, ridge_absolute / mean, ridge_absolute, condition, error)


def _cross(statistics: DomainStatistics) -> Float64Array:
    """(E, P') feature sums of the prototypes with prompts, one column each."""
    return np.ascontiguousarray(statistics.feature_sums[statistics.prototype_prompts > 0].T)


def _one_norm(matrix: Float64Array) -> float:
    return float(np.abs(matrix).sum(axis=0).max())
