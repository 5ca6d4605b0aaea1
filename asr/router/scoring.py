"""From pooled states to the scores that decide: ridge, neighbours, typicality.

Notation: m requests, d hidden size, E feature dimension, C columns of W, K domains.

    score_k    = (W^T phi)_k + NEIGHBOUR_WEIGHT * similarity_k       which domain: the largest
    evidence   = max_k (W^T phi)_k - (W^T phi)_background            known or not: three terms,
    typicality = d_0 - min_k d_k                                     weighed by
    closeness  = max_k similarity_k - similarity_background          asr.router.known

The ridge regression says what the domains have in common, neighbours where in them prompts really
lie, typicality whether the request lies where any prompt does. Each is right where another is not
(docs/routing.md has the figures), and each comes from what a domain stores anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.router.columns import BACKGROUND, Columns
from asr.router.features import FeatureMap
from asr.router.gaussian import DomainGaussians
from asr.router.neighbours import LeftOut, Neighbours, unit_rows
from asr.router.numerics import Float64Array

#: Factor of the similarity beside the ridge score (dev, forced: 1 .969, 2 .969, 4 .975, 6 .981).
NEIGHBOUR_WEIGHT = 4.0

#: With more domains than this, only those that the ridge scores put first are compared with their
#: references; the others take the lowest similarity found, which no domain wins by.
CANDIDATES = 8

#: The terms of the known score, in the order in which they are stored.
TERMS = ("evidence", "typicality", "closeness")


@dataclass(frozen=True)
class Scores:
    """Scores of m requests.

    Attributes:
        domains: (m, K) float64, what the choice of a domain rests on.
        terms: each (m,) float64, by name: ``evidence`` always, the others where they exist.
    """

    domains: Float64Array
    terms: dict[str, Float64Array]


@dataclass(frozen=True)
class Scorer:
    """Everything that makes scores; the fitted part of a router but for its thresholds.

    Attributes:
        feature_map: pooled states to features.
        columns: which column of W belongs to which domain.
        weights: W (E, C) float64.
        gaussians: of the domains, or None (then there are no neighbours either).
        neighbours: held-out prompts, or None.
    """

    feature_map: FeatureMap
    columns: Columns
    weights: Float64Array
    gaussians: DomainGaussians | None = None
    neighbours: Neighbours | None = None

    def __call__(self, pooled: NDArray[np.floating], left_out: LeftOut | None = None) -> Scores:
        """Score pooled states (m, d); ``left_out`` says whose held-out prompts they are, if any.

        Raises:
            RouterError: another hidden size, or an entry that is not finite.
        """
        states = self.feature_map.normalise(pooled)
        raw: Float64Array = self.feature_map.expand(states) @ self.weights
        ridge = self.columns.domain_scores(raw)
        terms = {"evidence": self.columns.known_scores(raw)}
        if self.gaussians is None:
            return Scores(ridge, terms)
        whitened = self.gaussians.whiten(states)
        terms["typicality"] = self.gaussians.typicality(states, whitened)
        if self.neighbours is None:
            return Scores(ridge, terms)
        units = unit_rows(whitened)
        similarity = self._similarity(self.neighbours, units, ridge, left_out)
        others = self.neighbours.similarity(units, BACKGROUND, left_out)
        terms["closeness"] = similarity.max(axis=1) - others
        return Scores(ridge + NEIGHBOUR_WEIGHT * similarity, terms)

    def _similarity(
        self,
        neighbours: Neighbours,
        units: NDArray[np.float32],
        ridge: Float64Array,
        left_out: LeftOut | None,
    ) -> Float64Array:
        count = ridge.shape[1]
        if count <= CANDIDATES:
            each = [neighbours.similarity(units, owner, left_out) for owner in range(count)]
            return np.stack(each, axis=1)
        found = np.full(ridge.shape, np.inf)
        first = np.argpartition(ridge, -CANDIDATES, axis=1)[:, -CANDIDATES:]
        for owner in np.unique(first):
            rows = np.flatnonzero((first == owner).any(axis=1))
            own = left_out and LeftOut(left_out.owner, left_out.prompts[rows])
            found[rows, owner] = neighbours.similarity(units[rows], int(owner), own)
        return np.where(np.isinf(found), found.min(axis=1, keepdims=True), found)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of what is fitted beside W: ``gaussians/...``, ``neighbours/...``."""
        made: dict[str, np.ndarray] = {}
        if self.gaussians is not None:
            made |= {f"gaussians/{k}": v for k, v in self.gaussians.to_tensors().items()}
        if self.neighbours is not None:
            made |= {f"neighbours/{k}": v for k, v in self.neighbours.to_tensors().items()}
        return made


def read_geometry(
    tensors: Mapping[str, np.ndarray], count: int
) -> tuple[DomainGaussians | None, Neighbours | None]:
    """Read what :meth:`Scorer.tensors` returned; a router of an earlier version has neither.

    Raises:
        KeyError, ValueError: tensors are missing or do not fit each other.
    """

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    gaussians, neighbours = under("gaussians/"), under("neighbours/")
    return (
        DomainGaussians.from_tensors(gaussians) if gaussians else None,
        Neighbours.from_tensors(neighbours, count) if neighbours else None,
    )
