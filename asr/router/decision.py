"""A routing decision: data that belongs to one request and travels with it.

Notation: m requests, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asr.router.numerics import Float64Array

#: The route of a request that no domain claims: the base model without an adapter.
BASE_ROUTE = "base"


@dataclass(frozen=True)
class Decision:
    """Where one request goes, and why.

    Attributes:
        domain: the best-scoring domain, whether or not it was taken.
        route: that domain, or ``"base"`` when abstained.
        abstained: whether ``score`` fell below ``threshold``.
        score: the best domain's score, less the background score where a background class exists.
        margin: best minus second-best domain score; None with a single domain.
        threshold: the score below which the router abstains; ``-inf`` when it never does.
        scores: every domain's score, without the background taken off.
        probability: the best domain's share of a softmax over the domains at the fitted
            temperature. It is the probability *given that* the request is of some domain.
    """

    domain: str
    route: str
    abstained: bool
    score: float
    margin: float | None
    threshold: float
    scores: dict[str, float]
    probability: float


@dataclass(frozen=True)
class DecisionBatch:
    """Decisions on m requests as arrays; :meth:`decision` gives one of them as a :class:`Decision`.

    Attributes:
        names: the K domains.
        indices: (m,) int64, the best-scoring domain (the first in name order on equal scores).
        abstained: (m,) bool.
        score: (m,) float64.
        margin: (m,) float64, or None with a single domain.
        probability: (m,) float64.
        scores: (m, K) float64.
        threshold: see :class:`Decision`.
    """

    names: tuple[str, ...]
    indices: np.ndarray
    abstained: np.ndarray
    score: Float64Array
    margin: Float64Array | None
    probability: Float64Array
    scores: Float64Array
    threshold: float

    def __len__(self) -> int:
        return len(self.indices)

    def decision(self, row: int) -> Decision:
        """Return the decision on one request."""
        domain = self.names[int(self.indices[row])]
        abstained = bool(self.abstained[row])
        return Decision(
            domain=domain,
            route=BASE_ROUTE if abstained else domain,
            abstained=abstained,
            score=float(self.score[row]),
            margin=None if self.margin is None else float(self.margin[row]),
            threshold=self.threshold,
            scores=dict(zip(self.names, self.scores[row].tolist(), strict=True)),
            probability=float(self.probability[row]),
        )

    def decisions(self) -> list[Decision]:
        """Return all decisions in order."""
        return [self.decision(row) for row in range(len(self))]


def decide_scores(
    names: tuple[str, ...],
    scores: Float64Array,
    background: Float64Array | None,
    threshold: float,
    temperature: float,
) -> DecisionBatch:
    """Turn scores into decisions.

    Args:
        names: the K domains.
        scores: (m, K).
        background: (m,), or None without a background class.
        threshold: below it a request goes to the base.
        temperature: of the softmax.
    """
    rows = np.arange(scores.shape[0])
    indices = scores.argmax(axis=1)
    best = scores[rows, indices]
    known = best if background is None else best - background
    margin = None
    if len(names) > 1:
        margin = best - np.partition(scores, -2, axis=1)[:, -2]
    # the best logit is 0 after the shift, so its share is 1 / sum
    shares = 1.0 / np.exp((scores - best[:, None]) / temperature).sum(axis=1)
    return DecisionBatch(
        names=names,
        indices=indices,
        abstained=known < threshold,
        score=known,
        margin=margin,
        probability=shares,
        scores=scores,
        threshold=threshold,
    )
