"""Measures of a router that may abstain, on arrays.

Notation: n questions. ``score`` (n,) is the known score, ``known`` (n,) bool says which questions
belong to a domain, ``right`` (n,) bool which routes are right, ``probability`` (n,) what the router
said of that.

Where questions of domains and strangers are weighed together, both halves weigh the same, whatever
their numbers: that is what :attr:`asr.router.Decision.probability` assumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Borders of the strata of :func:`matched_auroc`, in words.
LENGTHS = (0, 8, 12, 16, 22, 30, 1_000_000)

BINS = 10


def auroc(known: Floats, unknown: Floats) -> float | None:
    """Probability that a known score lies above an unknown one, ties counting half; None if empty.

    The Mann-Whitney statistic from mid-ranks.
    """
    if len(known) == 0 or len(unknown) == 0:
        return None
    ranks = rankdata(np.concatenate([known, unknown]))
    above = ranks[: len(known)].sum() - len(known) * (len(known) + 1) / 2
    return float(above / (len(known) * len(unknown)))


def matched_auroc(
    score: Floats, known: Bools, words: NDArray[np.int64], borders: Sequence[int] = LENGTHS
) -> float | None:
    """AUROC among questions of similar length, each pair weighing the same; None without a pair.

    Strangers are often shorter than a domain's prompts, and word count alone tells many apart.
    """
    total, pairs = 0.0, 0
    for low, high in pairwise(borders):
        inside = (words >= low) & (words < high)
        found = auroc(score[inside & known], score[inside & ~known])
        if found is not None:
            count = int((inside & known).sum()) * int((inside & ~known).sum())
            total, pairs = total + count * found, pairs + count
    return total / pairs if pairs else None


def balanced_weights(known: Bools) -> Floats:
    """Return (n,) weights that sum to 1, half of it on each kind that there is."""
    weights = np.zeros(len(known))
    kinds = [kind for kind in (known, ~known) if kind.any()]
    for kind in kinds:
        weights[kind] = 1.0 / (len(kinds) * kind.sum())
    return weights


def brier(probability: Floats, right: Bools, weights: Floats) -> float:
    """Mean squared error of the probability."""
    return float(np.sum(weights * np.square(probability - right)))


def constant_brier(right: Bools, weights: Floats) -> float:
    """The same of the best constant: what a probability has to beat."""
    return brier(np.full(len(right), np.sum(weights * right)), right, weights)


def reliability(probability: Floats, right: Bools, weights: Floats) -> list[dict[str, float]]:
    """Return the filled ones of ten equal bins: mean probability, share right, weight, count."""
    bins = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    rows = []
    for index in range(BINS):
        inside = bins == index
        weight = float(weights[inside].sum())
        if weight > 0:
            rows.append(
                {
                    "said": float(np.sum(weights[inside] * probability[inside]) / weight),
                    "right": float(np.sum(weights[inside] * right[inside]) / weight),
                    "weight": weight,
                    "count": int(inside.sum()),
                }
            )
    return rows


def calibration_error(probability: Floats, right: Bools, weights: Floats) -> float:
    """Expected calibration error over the bins of :func:`reliability` (Naeini et al. 2015)."""
    rows = reliability(probability, right, weights)
    return float(sum(row["weight"] * abs(row["said"] - row["right"]) for row in rows))


def abstain_curve(score: Floats, known: Bools) -> tuple[Floats, Floats, Floats]:
    """Return thresholds, share of known questions lost and of strangers caught below each (t,)."""
    thresholds = np.unique(score)
    lost = np.searchsorted(np.sort(score[known]), thresholds) / max(int(known.sum()), 1)
    caught = np.searchsorted(np.sort(score[~known]), thresholds) / max(int((~known).sum()), 1)
    return thresholds, lost, caught
