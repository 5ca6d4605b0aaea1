"""Confidence intervals of mean scores: how far a number would move on other test prompts.

Two methods, chosen by the data and named in the result:

* **Wilson** where every score is 0 or 1 and all weights are equal: a proportion. The percentile
  bootstrap collapses to a point at 0% and 100% (every resample is the same) and covers too little
  near them with 60-200 prompts; Wilson's interval does not (Brown, Cai & DasGupta 2001, Statistical
  Science 16(2), "Interval estimation for a binomial proportion").
* **Percentile bootstrap** otherwise (Efron 1979): resample the prompts with replacement, take the
  quantiles of the resampled means.

What they do not cover: the randomness of training. That needs several seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2_000
_CHUNK = 1 << 21  # indices drawn at once: bounds memory to ~32 MB whatever n is


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    ``low`` and ``high`` are NaN where one value alone gives no spread (``method`` "none").
    """

    mean: float
    low: float
    high: float
    n: int
    method: Literal["wilson", "bootstrap", "none"]


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of ``successes / n`` (Wilson 1927, JASA 22(158)).

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the (1 + level)/2 normal quantile.

    Raises:
        ValueError: if n < 1, ``successes`` is outside [0, n], or ``level`` is outside (0, 1).
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs n >= 1 and 0 <= successes <= n, got {successes} of {n}")
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    scale = 1 + z * z / n
    low, high = (centre - half) / scale, (centre + half) / scale
    # Exact at the ends, where rounding leaves 1e-17 or 0.99...9.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def mean_interval(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the (weighted) mean of ``values`` and its interval; see the module for the method.

    Args:
        values: (n,) finite scores, one per prompt.
        weights: (n,) positive weights (tokens, for a loss), or None for equal ones. A weighted
            mean is a ratio of sums; prompts are resampled together with their weights.
        level: coverage aimed at.
        resamples: number of bootstrap resamples.
        seed: of the Philox generator; equal input gives equal output on every machine.

    Raises:
        ValueError: if ``values`` is empty, not 1-D or not finite; if ``weights`` has another
            shape or holds a value that is not positive and finite; if ``level`` is outside
            (0, 1); if ``resamples`` < 1.
    """
    v, w = _checked(values, weights)
    _check_level(level)
    mean = _mean(v, w)
    if w is None and bool(np.isin(v, (0.0, 1.0)).all()):
        low, high = wilson(float(v.sum()), len(v), level)
        return Interval(mean, low, high, len(v), "wilson")
    return _bootstrap(v, w, mean, level, resamples, seed)


def paired_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``a - b`` over the *same* prompts, with a bootstrap interval.

    Pairing removes what both share (hard prompts are hard for both), so it resolves differences
    that two separate intervals cannot. Always the bootstrap: differences of 0/1 scores are not a
    proportion. Where all differences are equal the interval is that point.

    Args:
        a: (n,) scores of the first method.
        b: (n,) scores of the second, same prompts in the same order.
        weights: as in :func:`mean_interval`.
        level: as in :func:`mean_interval`.
        resamples: as in :func:`mean_interval`.
        seed: as in :func:`mean_interval`.

    Raises:
        ValueError: if ``a`` and ``b`` differ in shape, or as in :func:`mean_interval`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired scores differ in shape: {first.shape} and {second.shape}")
    v, w = _checked(first - second, weights)
    _check_level(level)
    return _bootstrap(v, w, _mean(v, w), level, resamples, seed)


def _bootstrap(
    v: Floats, w: Floats | None, mean: float, level: float, resamples: int, seed: int
) -> Interval:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    n = len(v)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1, "none")
    rng = np.random.Generator(np.random.Philox(seed))
    means = np.empty(resamples)  # (resamples,)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, n, size=(size, n))
        if w is None:
            means[start : start + size] = v[drawn].mean(axis=1)
        else:
            means[start : start + size] = (v * w)[drawn].sum(axis=1) / w[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # With all values equal, resampled sums round differently by an ulp: keep the mean inside.
    return Interval(mean, min(float(low), mean), max(float(high), mean), n, "bootstrap")


def _mean(v: Floats, w: Floats | None) -> float:
    return float(v.mean()) if w is None else float((v * w).sum() / w.sum())


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, got {level}")


def _checked(values: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Floats, Floats | None]:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or len(v) == 0 or not np.isfinite(v).all():
        raise ValueError(f"scores must be a non-empty 1-D array of finite numbers, got {v.shape}")
    if weights is None:
        return v, None
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != v.shape or not (np.isfinite(w).all() and (w > 0).all()):
        raise ValueError(f"weights must be positive and finite with shape {v.shape}, got {w.shape}")
    return v, w
