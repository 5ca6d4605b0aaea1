"""A routing decision: data that belongs to one request and travels with it.

Notation: m requests, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from asr.router.known import KnownScore
from asr.router.numerics import Float64Array
from asr.router.scoring import Scores

#: The route of a request that no domain claims: the base model without an adapter.
BASE_ROUTE = "base"


@dataclass(frozen=True)
class Decision:
    """Where one request goes, and why.

    Attributes:
        domain: the best-scoring domain, whether or not it was taken.
        route: that domain, or ``"base"`` when abstained.
        abstained: whether ``score`` fell below ``threshold``.
        score: how well known the request is: its terms, weighed (:mod:`asr.router.known`).
        margin: best minus second-best domain score; None with a single domain.
        threshold: the score below which the router abstains; ``-inf`` when it never does.
        scores: every domain's score, without the background taken off.
        probability: of this route being right, every other request being a stranger's: P(known)
            times the domain's share of a softmax over the domains, or 1 - P(known) for the base.
        terms: what ``score`` is made of (:mod:`asr.router.scoring`): ``evidence`` (regression, best
            domain over background), ``typicality`` (relative Mahalanobis distance) and
            ``closeness`` (held-out prompts of the domain against those of the background).
    """

    domain: str
    route: str
    abstained: bool
    score: float
    margin: float | None
    threshold: float
    scores: dict[str, float]
    probability: float
    terms: dict[str, float] = field(default_factory=dict)


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
        terms: (m,) float64 each, by name; see :class:`Decision`.
    """

    names: tuple[str, ...]
    indices: np.ndarray
    abstained: np.ndarray
    score: Float64Array
    margin: Float64Array | None
    probability: Float64Array
    scores: Float64Array
    threshold: float
    terms: dict[str, Float64Array] = field(default_factory=dict)

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
            terms={name: float(values[row]) for name, values in self.terms.items()},
        )

    def decisions(self) -> list[Decision]:
        """Return all decisions in order."""
        return [self.decision(row) for row in range(len(self))]


def decide_scores(
    names: tuple[str, ...], scores: Scores, known: KnownScore, threshold: float, temperature: float
) -> DecisionBatch:
    """Turn scores into decisions.

    Args:
        names: the K domains.
        scores: of m requests.
        known: how their terms become one score.
        threshold: below it a request goes to the base.
        temperature: of the softmax over the domains.
    """
    domains = scores.domains
    indices = domains.argmax(axis=1)
    best = domains[np.arange(domains.shape[0]), indices]
    score = known.score(scores.terms)
    margin = None
    if len(names) > 1:
        margin = best - np.partition(domains, -2, axis=1)[:, -2]
    # the best logit is 0 after the shift, so its share is 1 / sum
    shares = 1.0 / np.exp((domains - best[:, None]) / temperature).sum(axis=1)
    abstained = score < threshold
    is_known = known.probability(score)
    return DecisionBatch(
        names=names,
        indices=indices,
        abstained=abstained,
        score=score,
        margin=margin,
        probability=np.where(abstained, 1.0 - is_known, is_known * shares),
        scores=domains,
        threshold=threshold,
        terms=scores.terms,
    )
