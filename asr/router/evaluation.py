"""Scores of the calibration blocks under given weights, and what they say.

Notation: n prompts and V views of a block, C columns of W, K domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from asr.router.calibration import CalibrationBlock, fit_temperature, negative_log_likelihood
from asr.router.columns import Columns
from asr.router.features import FeatureMap
from asr.router.numerics import Float64Array

#: Raw scores of the blocks that have prompts: name -> view -> (n, C).
BlockScores = dict[str, dict[str, Float64Array]]


@dataclass(frozen=True)
class Evaluation:
    """How well weights route the calibration blocks.

    Attributes:
        accuracy: per view kind, the mean over domains of the share of prompts routed right
            (balanced: a domain with many prompts counts like one with few).
        domain_accuracy: per domain and view kind, that share.
        standard_error: of the balanced accuracy of the worst view kind.
        temperature: softmax temperature fitted on all cells.
        loss: mean over cells (domain, view) of the mean negative log-likelihood at it.
    """

    accuracy: dict[str, float]
    domain_accuracy: dict[str, dict[str, float]]
    standard_error: float
    temperature: float
    loss: float

    @property
    def worst_accuracy(self) -> float:
        """The balanced accuracy of the worst view kind."""
        return min(self.accuracy.values())


def score_blocks(
    blocks: Mapping[str, CalibrationBlock], feature_map: FeatureMap, weights: Float64Array
) -> BlockScores:
    """Return features times ``weights`` (E, C) for every block with prompts, in name order.

    One block is mapped at a time, so the memory of an expansion is that of the largest block.
    """
    scores: BlockScores = {}
    for name in sorted(blocks):
        block = blocks[name]
        if block.prompts:
            raw = feature_map(block.pooled) @ weights
            scores[name] = {
                view: np.ascontiguousarray(raw[:, index])
                for index, view in enumerate(block.view_names)
            }
    return scores


def select_columns(scores: BlockScores, columns: slice) -> BlockScores:
    """Return the scores of some of the columns."""
    return {
        name: {view: np.ascontiguousarray(raw[:, columns]) for view, raw in views.items()}
        for name, views in scores.items()
    }


def evaluate(scores: BlockScores, columns: Columns) -> Evaluation:
    """Judge the scores of blocks of routable domains (at least one with prompts).

    Raises:
        ValueError: no scores at all.
    """
    if not scores:
        raise ValueError("no calibration scores to evaluate")
    right: dict[str, list[tuple[float, int]]] = {}
    domain_accuracy: dict[str, dict[str, float]] = {}
    cells: list[Float64Array] = []
    labels: list[int] = []
    for name, views in scores.items():
        label = columns.names.index(name)
        domain_accuracy[name] = {}
        for view, raw in views.items():
            routed = columns.domain_scores(raw)
            share = float(np.mean(routed.argmax(axis=1) == label))
            domain_accuracy[name][view] = share
            right.setdefault(view, []).append((share, len(raw)))
            cells.append(routed)
            labels.append(label)
    accuracy = {view: float(np.mean([s for s, _ in right[view]])) for view in sorted(right)}
    worst = min(accuracy, key=lambda view: (accuracy[view], view))
    counts = [len(cell) for cell in cells]
    stacked = np.concatenate(cells)
    targets = np.repeat(np.asarray(labels), counts)
    weights = np.repeat([1.0 / (len(cells) * count) for count in counts], counts)
    temperature = fit_temperature(stacked, targets, weights)
    return Evaluation(
        accuracy=accuracy,
        domain_accuracy=domain_accuracy,
        standard_error=_standard_error(right[worst]),
        temperature=temperature,
        loss=negative_log_likelihood(stacked, targets, temperature, weights),
    )


def _standard_error(shares: list[tuple[float, int]]) -> float:
    """Standard error of a mean of shares; each is moved off 0 and 1 by Laplace's rule."""
    smoothed = [((share * n + 1.0) / (n + 2.0), n) for share, n in shares]
    variance = sum(share * (1.0 - share) / n for share, n in smoothed)
    return float(np.sqrt(variance)) / len(shares)
