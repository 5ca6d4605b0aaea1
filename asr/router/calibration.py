"""Calibration: held-out prompts of a domain, and what is set from them.

Notation: n prompts, V views per prompt, d hidden size, K domains.

The weights change whenever the set of domains does, so thresholds, temperature and ridge are set
anew each time. What they are set from must therefore be kept: per domain, the pooled *unexpanded*
features of prompts that are not part of its statistics (features of training prompts give scores
that are too good: asked to reject 2%, thresholds from them reject 13 to 32% of bare prompts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from asr.errors import RouterError
from asr.router.features import require_finite
from asr.router.numerics import Float64Array, minimise_bounded

#: Range of the softmax temperature. Ridge scores lie about in 0 ... 1, so 1e-3 is a hard maximum
#: and 1e2 is uniform.
TEMPERATURE_RANGE = (1e-3, 1e2)


class CalibrationBlock:
    """Pooled features of prompts held out from a domain's statistics.

    Attributes:
        pooled: (n, V, d) float32, read-only; n may be 0.
        view_names: the V kinds of view, such as ``("templated", "bare")``.
    """

    def __init__(self, pooled: ArrayLike, view_names: Sequence[str]) -> None:
        """Check and keep a copy.

        Raises:
            ValueError: ``pooled`` is not (n, V, d) with V names, V >= 1, or a name repeats.
            RouterError: an entry is not finite.
        """
        block = np.array(pooled, dtype=np.float32, order="C")
        names = tuple(view_names)
        if block.ndim != 3 or block.shape[1] != len(names) or not names:
            raise ValueError(f"pooled has shape {block.shape}; need (n, {len(names)}, d), V >= 1")
        if len(set(names)) != len(names):
            raise ValueError(f"view names repeat: {', '.join(names)}")
        require_finite(block)
        block.flags.writeable = False
        self.pooled = block
        self.view_names = names

    @property
    def prompts(self) -> int:
        """n: the number of prompts."""
        return int(self.pooled.shape[0])

    @property
    def hidden_size(self) -> int:
        """The hidden size d."""
        return int(self.pooled.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.pooled.nbytes)

    def __add__(self, other: CalibrationBlock) -> CalibrationBlock:
        """Return the prompts of both, in this order.

        Raises:
            RouterError: other views, or another hidden size.
        """
        if not isinstance(other, CalibrationBlock):
            return NotImplemented
        if (self.view_names, self.hidden_size) != (other.view_names, other.hidden_size):
            raise RouterError(
                f"calibration blocks differ: views {', '.join(self.view_names)} of"
                f" {self.hidden_size} features and {', '.join(other.view_names)} of"
                f" {other.hidden_size}; make both with the same views and base"
            )
        return CalibrationBlock(np.concatenate([self.pooled, other.pooled]), self.view_names)


def conformal_threshold(scores: ArrayLike, alpha: float) -> float:
    """Return the value below which a new exchangeable score falls with probability <= alpha.

    Split conformal: the k-th smallest of the n scores with ``k = floor(alpha (n + 1))``. The rank
    of a new score among n + 1 is uniform, so it lies below the k-th smallest with probability at
    most ``k / (n + 1) <= alpha``, whatever the distribution. For k = 0 (fewer than 1 / alpha - 1
    scores) no finite value has that guarantee, and ``-inf`` is returned: nothing is rejected.

    Args:
        scores: (n,) scores of known prompts, higher is better known.
        alpha: the share of known prompts that may be rejected, 0 ... 1.

    Raises:
        ValueError: ``alpha`` outside 0 ... 1, or scores that are not a finite vector.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; it must lie in 0 ... 1")
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("scores must be a vector of finite numbers")
    # 0.29 * 100 is 28.999999999999996 in floating point: meant is 29
    position = min(math.floor(alpha * (values.size + 1) + 1e-9), values.size)
    if position == 0:
        return -math.inf
    return float(np.partition(values, position - 1)[position - 1])


def prompts_needed(alpha: float) -> int:
    """Return the least n for which :func:`conformal_threshold` is finite; ``alpha`` above 0."""
    return max(1, math.ceil(1.0 / alpha - 1.0 - 1e-9))


def view_thresholds(scores: Mapping[str, Float64Array], alpha: float) -> dict[str, float]:
    """Return the conformal threshold of each view kind: ``scores`` maps a kind to its (n,) scores.

    The smallest of them is the one to use: every kind then keeps at least 1 - alpha of its known
    prompts, the worst kind included. ``alpha`` 0 gives ``-inf`` throughout.
    """
    return {view: conformal_threshold(values, alpha) for view, values in scores.items()}


def negative_log_likelihood(
    scores: Float64Array, labels: np.ndarray, temperature: float, weights: Float64Array
) -> float:
    """Return the weighted mean of ``-log softmax(scores / T)[label]``; weights (n,) sum to 1."""
    logits = scores / temperature
    logits = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits).sum(axis=1))
    return float(np.dot(weights, log_sum - logits[np.arange(len(labels)), labels]))


def fit_temperature(
    scores: Float64Array, labels: np.ndarray, weights: Float64Array | None = None
) -> float:
    """Return the softmax temperature that minimises the negative log-likelihood.

    Brent's bounded search over log T within :data:`TEMPERATURE_RANGE` (the loss is convex in 1 / T,
    so it has one minimum). Source: temperature scaling, Guo et al. 2017.

    Args:
        scores: (n, K).
        labels: (n,) integers in 0 ... K - 1.
        weights: (n,) non-negative; None for equal.
    Returns: T; 1.0 where nothing can be fitted (no rows, or K = 1).
    """
    if scores.shape[0] == 0 or scores.shape[1] < 2:
        return 1.0
    given = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = given / given.sum()

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scores, labels, math.exp(log_temperature), share)

    low, high = (math.log(bound) for bound in TEMPERATURE_RANGE)
    return math.exp(minimise_bounded(loss, low, high))
