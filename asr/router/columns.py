"""Which column of W belongs to which domain, and how columns become scores.

Notation: m rows, C columns of W, K domains that can be routed to.

A domain has one column per prototype that has prompts; its score is the largest of them (the sum of
a domain's columns would be the column of a single prototype again). Columns of background classes
belong to no route: the largest of them is the background score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asr.router.numerics import Float64Array

#: Owner of a background column.
BACKGROUND = -1


@dataclass(frozen=True)
class Columns:
    """The layout of W.

    Attributes:
        names: the K domains that are routes, in name order.
        owners: for each of the C columns, an index into ``names``, or :data:`BACKGROUND`.
    """

    names: tuple[str, ...]
    owners: tuple[int, ...]

    @property
    def has_background(self) -> bool:
        """Whether a background column exists."""
        return BACKGROUND in self.owners

    def domain_scores(self, raw: Float64Array) -> Float64Array:
        """Return (m, K) scores from (m, C) products of features and W."""
        if self.owners == tuple(range(len(self.names))):
            return raw
        return np.stack([self._best(raw, index) for index in range(len(self.names))], axis=1)

    def background_scores(self, raw: Float64Array) -> Float64Array:
        """Return (m,) background scores, zero where no background class exists."""
        if not self.has_background:
            return np.zeros(raw.shape[0], dtype=np.float64)
        return self._best(raw, BACKGROUND)

    def known_scores(self, raw: Float64Array) -> Float64Array:
        """Return (m,): the best domain's score, less the background's. What thresholds apply to."""
        best: Float64Array = self.domain_scores(raw).max(axis=1)
        return best - self.background_scores(raw) if self.has_background else best

    def _best(self, raw: Float64Array, owner: int) -> Float64Array:
        mine: Sequence[int] = [i for i, value in enumerate(self.owners) if value == owner]
        best: Float64Array = raw[:, mine].max(axis=1)
        return best
