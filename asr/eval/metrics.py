"""Metrics of continual learning and of routing, as plain functions of arrays.

Notation for shapes and formulas:
    T: number of domains trained.  a[k, j]: score on domain j after training domain k (rows =
    after domain k, columns = domains); NaN or None where domain j was not trained or not scored.

Direction: a score where lower is better (a loss) is marked False in ``higher_is_better``. OP
stays in the score's own units. *Differences* are turned so that, for every metric, positive BWT
means improved and a negative one got worse. Where domains of both directions are mixed,
a mean over them (accuracy with nats) means nothing: those metrics are None.

None always says "not defined for what was measured", never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
ScoreRows = npt.ArrayLike | Sequence[Sequence[float | None]]

BASE = "base"
"""Name of the route of a request on which the router abstained: it goes to the base."""


def _square(matrix: ScoreRows) -> Floats:
    # None becomes NaN: numpy does it, its type hints do not know.
    a = np.asarray(cast(npt.ArrayLike, matrix), dtype=np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
        raise ValueError(f"score matrix must be square with T >= 1, got shape {a.shape}")
    return a


def direction(higher_is_better: Sequence[bool] | None, domains: int) -> int | None:
    """Return +1 (all higher is better; also for None), -1 (all lower), or None (mixed).

    Raises:
        ValueError: if ``higher_is_better`` does not have one entry per domain.
    """
    if higher_is_better is None:
        return 1
    if len(higher_is_better) != domains:
        raise ValueError(f"higher_is_better has {len(higher_is_better)} entries, T is {domains}")
    if all(higher_is_better):
        return 1
    return None if any(higher_is_better) else -1


def overall_performance(
    matrix: ScoreRows, higher_is_better: Sequence[bool] | None = None
) -> float | None:
    """Return OP = (1/T) sum_i a[T, i]: the mean over all domains after the last one.

    "Average accuracy" of Lopez-Paz & Ranzato 2017 (GEM, arXiv:1706.08840, eq. 2); "overall
    performance" in TRACE (Wang et al. 2023, arXiv:2310.06762). Their matrices are indexed
    [domain, step] or [step, domain]; here it is [step, domain].

    Args:
        matrix: (T, T).
        higher_is_better: per domain; None means all True.

    Returns:
        OP in the score's units (for a loss: lower is better), or None where the last row is not
        complete or directions are mixed.

    Raises:
        ValueError: if the matrix is not square, or ``higher_is_better`` is not of length T.
    """
    a = _square(matrix)
    if direction(higher_is_better, len(a)) is None or not np.isfinite(a[-1]).all():
        return None
    return float(a[-1].mean())


def backward_transfer(
    matrix: ScoreRows, higher_is_better: Sequence[bool] | None = None
) -> float | None:
    """Return BWT = 1/(T-1) sum_{i<T} (a[T, i] - a[i, i]); negative means forgetting.

    Lopez-Paz & Ranzato 2017 (arXiv:1706.08840, eq. 3), as in TRACE (arXiv:2310.06762). For losses
    the sign is turned, so that negative means forgetting there too.

    Args:
        matrix: (T, T).
        higher_is_better: per domain; None means all True.

    Returns:
        BWT, or None where T = 1, a needed cell is missing, or directions are mixed.

    Raises:
        ValueError: as in :func:`overall_performance`.
    """
    a = _square(matrix)
    sign = direction(higher_is_better, len(a))
    change = (a[-1] - np.diagonal(a))[:-1]  # (T-1,)
    if sign is None or len(change) == 0 or not np.isfinite(change).all():
        return None
    return float(sign * change.mean()) + 0.0  # + 0.0: never "-0.0"


def confusion(true: Sequence[str], routed: Sequence[str | None], domains: Sequence[str]) -> Counts:
    """Count where the requests of each domain were sent.

    Args:
        true: the domain of each request.
        routed: where it was sent; None or "base" is an abstention.
        domains: the T names that give rows and columns their order.

    Returns:
        (T, T + 1) int64; rows are true domains, the last column is ``base``.

    Raises:
        ValueError: if the lengths differ, or a name is not in ``domains``.
    """
    if len(true) != len(routed):
        raise ValueError(f"{len(true)} true domains but {len(routed)} routes")
    index = {name: i for i, name in enumerate(domains)}
    counts = np.zeros((len(index), len(index) + 1), dtype=np.int64)
    for want, got in zip(true, routed, strict=True):
        if want not in index:
            raise ValueError(f"true domain '{want}' is not one of: {', '.join(domains)}")
        abstained = got is None or got == BASE
        if not abstained and got not in index:
            raise ValueError(f"route '{got}' is not one of: {', '.join(domains)}, {BASE}")
        counts[index[want], -1 if abstained else index[str(got)]] += 1
    return counts


def routing_accuracy(counts: npt.ArrayLike) -> float | None:
    """Return the share of requests sent to their own domain; an abstention is an error.

    Args:
        counts: (T, T + 1), as :func:`confusion` returns it.

    Returns:
        A value in [0, 1], or None where nothing was counted.

    Raises:
        ValueError: if the shape is not (T, T + 1).
    """
    c = np.asarray(counts, dtype=np.int64)
    if c.ndim != 2 or c.shape[1] != c.shape[0] + 1:
        raise ValueError(f"confusion must have shape (T, T + 1), got {c.shape}")
    total = int(c.sum())
    return float(np.trace(c) / total) if total else None
