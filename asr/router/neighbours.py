"""Held-out prompts as neighbours: how near is a request to those of each domain, and to others?

Notation: R reference rows, K domains, m requests, d hidden size, k neighbours.

    similarity_c(x) = mean of the k largest cosines between x and the references of class c

in whitened coordinates (:class:`asr.router.gaussian.DomainGaussians`), where directions in which
all prompts differ anyway count little. A linear map over means sees a domain as one direction; its
held-out prompts say where in it prompts really lie. They are kept for thresholds in any case
(:class:`asr.router.calibration.CalibrationBlock`), so this costs no new state of a domain.

The references are the calibration blocks themselves. Where such a block is scored, the references
made of the *same prompt* are left out, or a prompt would be its own neighbour.

Left out on purpose: an index. References of a class are at most :data:`ROWS`, and with many domains
only those that the ridge scores put first are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.router.columns import BACKGROUND
from asr.router.gaussian import Float32Array
from asr.router.numerics import Float64Array

#: Most reference rows of a domain; of the background, four times as many: the world is wide.
ROWS = 512
BACKGROUND_ROWS = 4 * ROWS


@dataclass(frozen=True)
class LeftOut:
    """Whose prompts are scored: their own references do not count.

    Attributes:
        owner: the class of the scored block, as in :class:`Neighbours`.
        prompts: (m,) the prompt of each scored row, by its place in the block.
    """

    owner: int
    prompts: NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """Reference rows of all classes.

    Attributes:
        units: (R, d) float32 whitened rows of length 1, rounded to float16, as they are stored.
        owners: (R,) int64 ascending, the domain's index, or ``BACKGROUND`` (-1).
        prompts: (R,) int64, the prompt of a row, by its place in its block.
        count: k.
    """

    units: Float32Array
    owners: NDArray[np.int64]
    prompts: NDArray[np.int64]
    count: int

    @classmethod
    def fit(cls, whitened: Mapping[int, Float32Array], count: int) -> Neighbours | None:
        """Take the references of every class.

        Args:
            whitened: (n, V, d) per class, by owner; n may be 0.
            count: k, at least 1.
        Returns: the neighbours, or None where no class has a row.
        """
        units, owners, prompts = [], [], []
        for owner in sorted(whitened):
            block = whitened[owner]
            n, views, d = block.shape
            chosen = reference_rows(n, views, BACKGROUND_ROWS if owner == BACKGROUND else ROWS)
            units.append(_rounded(unit_rows(block.reshape(-1, d)[chosen])))
            owners.append(np.full(len(chosen), owner, dtype=np.int64))
            prompts.append(chosen // views)
        if not sum(map(len, owners)):
            return None
        return cls(np.concatenate(units), np.concatenate(owners), np.concatenate(prompts), count)

    def similarity(
        self, units: Float32Array, owner: int, left_out: LeftOut | None = None
    ) -> Float64Array:
        """Return (m,): mean cosine to the k nearest references of a class; 0 where it has none.

        Args:
            units: (m, d) rows of length 1.
            owner: the class.
            left_out: whose prompts these are, where they are a calibration block's.
        """
        first, last = np.searchsorted(self.owners, [owner, owner + 1])
        references = self.units[first:last]
        if len(references) == 0:
            return np.zeros(len(units), dtype=np.float64)
        cosines = units @ references.T
        if left_out is not None and left_out.owner == owner:
            same = left_out.prompts[:, None] == self.prompts[first:last][None]
            cosines = np.where(same, -np.inf, cosines)
        nearest = cosines
        if len(references) > self.count:
            nearest = np.partition(cosines, -self.count, axis=1)[:, -self.count :]
        there = np.isfinite(nearest)
        total = np.where(there, nearest, 0.0).sum(axis=1, dtype=np.float64)
        mean: Float64Array = total / np.maximum(there.sum(axis=1), 1)
        return mean

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        halved = self.units.astype(np.float16)
        return {"units": halved, "owners": self.owners, "prompts": self.prompts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], count: int) -> Neighbours:
        """Make neighbours from what :meth:`to_tensors` returned.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the shapes do not fit each other.
        """
        units, owners, prompts = (tensors[name] for name in ("units", "owners", "prompts"))
        if units.ndim != 2 or owners.shape != units.shape[:1] or prompts.shape != owners.shape:
            raise ValueError("the reference rows do not fit each other")
        wide = units.astype(np.float32)
        return cls(wide, owners.astype(np.int64), prompts.astype(np.int64), count)


def _rounded(units: Float32Array) -> Float32Array:
    return units.astype(np.float16).astype(np.float32)


def reference_rows(prompts: int, views: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` places in the (prompts * views,) rows of a block, ascending.

    As many prompts as fit, each in equally many views; which views rotates from prompt to prompt.
    """
    kept = min(prompts, most)
    each = min(views, most // kept) if kept else 0
    places = [
        prompt * views + (prompt + step) % views for prompt in range(kept) for step in range(each)
    ]
    return np.array(sorted(places), dtype=np.int64)


def unit_rows(rows: Float32Array) -> Float32Array:
    """Return the rows (m, d) divided by their lengths; a row of zeros stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Float32Array = (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return scaled
