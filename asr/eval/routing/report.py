"""What a router makes of labelled questions, as numbers.

Notation: n questions, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asr.eval.intervals import wilson
from asr.eval.metrics import confusion
from asr.eval.routing.measures import (
    Bools,
    Floats,
    auroc,
    balanced_weights,
    brier,
    calibration_error,
    constant_brier,
    matched_auroc,
    reliability,
)
from asr.eval.routing.questions import NONE
from asr.router import BASE_ROUTE, DecisionBatch


@dataclass(frozen=True)
class Share:
    """A share of n with its 95% Wilson interval; None of it where n is 0."""

    share: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, hits: Bools) -> Share:
        """The share of True."""
        n = len(hits)
        if n == 0:
            return cls(None, None, None, 0)
        low, high = wilson(float(hits.sum()), n)
        return cls(float(hits.mean()), low, high, n)


@dataclass(frozen=True)
class RoutingReport:
    """The figures of one set of questions.

    Attributes:
        domains: the K names, in the order of ``confusion``.
        forced: share of known questions whose best domain is theirs, all and per domain.
        routed: the same with abstaining.
        to_base: share of strangers sent to the base, all (``none``) and per group that is named.
        confusion: (K, K + 1) counts, rows the domains, the last column the base.
        auroc, matched: of the known score, over all questions and among those of similar length.
        words: AUROC of word count alone.
        brier, constant_brier, ece: of the probability; the constant is what it has to beat.
        reliability: bins of the probability.
        threshold: of the router; None where it never abstains.
        score, known: (n,) each, for the figures.
    """

    domains: tuple[str, ...]
    forced: dict[str, Share]
    routed: dict[str, Share]
    to_base: dict[str, Share]
    confusion: list[list[int]]
    auroc: float | None
    matched: float | None
    words: float | None
    brier: float
    constant_brier: float
    ece: float
    reliability: list[dict[str, float]]
    threshold: float | None
    score: Floats
    known: Bools

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the single questions."""
        values = asdict(self)
        del values["score"], values["known"]
        values["domains"] = list(self.domains)
        return values


def routing_report(
    batch: DecisionBatch, labels: Sequence[str], groups: Sequence[str], words: Sequence[int]
) -> RoutingReport:
    """Judge decisions.

    Args:
        batch: on the n questions.
        labels: (n,) domain of each, or ``none``.
        groups: (n,) kind of each, "" for none.
        words: (n,) words of each.
    """
    names = np.array(batch.names)
    label = np.array(labels)
    known: Bools = label != NONE
    forced: Bools = names[batch.indices] == label
    routed: Bools = forced & ~batch.abstained
    right: Bools = np.where(known, routed, batch.abstained).astype(bool)
    lengths = np.array(words, dtype=np.int64)
    weights = balanced_weights(known)
    kinds = {"all": known, **{name: label == name for name in batch.names if (label == name).any()}}
    kind = np.array(groups)
    strangers = {NONE: ~known}
    strangers |= {
        str(group): ~known & (kind == group) for group in dict.fromkeys(kind[~known]) if group
    }
    routes = np.where(batch.abstained, BASE_ROUTE, names[batch.indices])
    counted = confusion(list(label[known]), list(routes[known]), list(batch.names))
    return RoutingReport(
        domains=batch.names,
        forced={name: Share.of(forced[rows]) for name, rows in kinds.items()},
        routed={name: Share.of(routed[rows]) for name, rows in kinds.items()},
        to_base={name: Share.of(batch.abstained[rows]) for name, rows in strangers.items()},
        confusion=counted.tolist(),
        auroc=auroc(batch.score[known], batch.score[~known]),
        matched=matched_auroc(batch.score, known, lengths),
        words=auroc(lengths[known].astype(float), lengths[~known].astype(float)),
        brier=brier(batch.probability, right, weights),
        constant_brier=constant_brier(right, weights),
        ece=calibration_error(batch.probability, right, weights),
        reliability=reliability(batch.probability, right, weights),
        threshold=float(batch.threshold) if np.isfinite(batch.threshold) else None,
        score=batch.score,
        known=known,
    )
