"""Choosing the ridge on the calibration blocks.

Not leave-one-out: that needs the feature of every training prompt, which is gone, and with several
views of one prompt both per-view leave-one-out and generalised cross-validation prefer the wrong
ridge.

The criterion, in this order:

1. the balanced accuracy of the *worst* view kind, because the best kind is near 1 for any ridge;
   every ridge within one standard error of the best is kept (differences below that are noise, and
   near 1 they are single prompts);
2. among those, the least mean cross-entropy over domains and views, each ridge at its own fitted
   temperature: a smooth measure of how well separated the domains are;
3. the larger ridge, where even that is equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asr.errors import RouterError
from asr.router.calibration import CalibrationBlock
from asr.router.columns import Columns
from asr.router.evaluation import Evaluation, evaluate, score_blocks, select_columns
from asr.router.features import FeatureMap
from asr.router.numerics import Float64Array
from asr.router.solve import RidgeFactor, absolute_ridge

#: Relative ridges tried: two per decade, 1e-6 ... 1.
RIDGE_GRID: tuple[float, ...] = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-12, 1))

#: Relative ridge where nothing can choose it (no held-out prompts, or a single domain).
DEFAULT_RIDGE = 1e-2


@dataclass(frozen=True)
class RidgeRow:
    """One line of the table of tried ridges.

    Attributes:
        ridge: relative to trace(G) / E.
        accuracy: balanced accuracy per view kind.
        temperature: fitted softmax temperature.
        loss: mean cross-entropy over domains and views at that temperature.

    Where the ridge is too small to factorise, ``accuracy`` is empty and the others are None.
    """

    ridge: float
    accuracy: dict[str, float]
    temperature: float | None
    loss: float | None


@dataclass(frozen=True)
class RidgeChoice:
    """The chosen relative ridge and the whole table, in ascending order of ridge."""

    ridge: float
    table: tuple[RidgeRow, ...]


def choose_ridge(
    gram: Float64Array,
    targets: Float64Array,
    columns: Columns,
    blocks: Mapping[str, CalibrationBlock],
    feature_map: FeatureMap,
    grid: Sequence[float] = RIDGE_GRID,
) -> RidgeChoice:
    """Choose the relative ridge. Costs one factorisation per ridge and one pass over the blocks.

    Args:
        gram: (E, E) sum over all domains.
        targets: (E, C) cross-correlation.
        columns: the layout of the C columns.
        blocks: calibration blocks of routable domains by name; at least one with prompts.
        feature_map: maps their pooled features.
        grid: relative ridges.

    Raises:
        RouterError: no ridge of the grid factorises.
        ValueError: no block has prompts, or the grid is empty.
    """
    solved: dict[float, Float64Array | None] = {}
    failure: RouterError | None = None
    for ridge in sorted(grid):
        try:
            solved[ridge] = RidgeFactor(gram, absolute_ridge(gram, ridge)).solve(targets)
        except RouterError as error:
            solved[ridge], failure = None, error
    if not solved:
        raise ValueError("the grid of ridges is empty")
    good = [weights for weights in solved.values() if weights is not None]
    if not good and failure is not None:
        raise failure
    scores = score_blocks(blocks, feature_map, np.concatenate(good, axis=1))
    width, taken = targets.shape[1], 0
    rows: list[RidgeRow] = []
    ranked: list[tuple[float, Evaluation]] = []
    for ridge, weights in solved.items():
        if weights is None:
            rows.append(RidgeRow(ridge, {}, None, None))
            continue
        found = evaluate(select_columns(scores, slice(taken, taken + width)), columns)
        taken += width
        rows.append(RidgeRow(ridge, found.accuracy, found.temperature, found.loss))
        ranked.append((ridge, found))
    return RidgeChoice(_pick(ranked), tuple(rows))


def _pick(ranked: Sequence[tuple[float, Evaluation]]) -> float:
    """Apply the criterion of this module to (ridge, evaluation) pairs."""
    _, best = max(ranked, key=lambda pair: (pair[1].worst_accuracy, pair[0]))
    floor = best.worst_accuracy - best.standard_error
    kept = [(ridge, found.loss) for ridge, found in ranked if found.worst_accuracy >= floor]
    least = min(loss for _, loss in kept)
    return max(ridge for ridge, loss in kept if loss <= least + 1e-12 * max(1.0, least))
