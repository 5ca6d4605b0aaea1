"""Additive statistics of one domain: all that the ridge regression needs to know of its prompts.

Notation: n prompts, V views per prompt, E feature dimension, P prototypes of the domain,
x_iv in R^E the feature of view v of prompt i.

    n = sum_i 1        s_p = sum_{i in p} (1/V) sum_v x_iv        G = sum_i (1/V) sum_v x_iv x_iv^T

These are sums over prompts, so two sets of prompts are joined by adding them, and W of any set of
domains follows from their sums alone (the sufficient statistics of ridge regression; ACIL, GACL and
AFL all accumulate them). Each of the V views of a prompt weighs 1/V: a prompt counts once however
many ways it was shown. Updates take (n, V, E), so the weights and the count follow from the shape
and cannot disagree.

While a domain has fewer view rows than E, it keeps the rows themselves, multiplied by sqrt(1/V):
F (m, E) with G = F^T F. That is smaller than G, and exact. From E rows on it keeps G.

Left out on purpose: subtraction. Taking a small domain out of a sum with a heavy one loses digits;
sums are made anew from the domains that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from asr.errors import RouterError, unknown
from asr.router.numerics import (
    Float64Array,
    mirror_lower,
    pivoted_cholesky,
    rank_update,
    zeros_lower,
)

#: "domain" has a column and is a route; "background" has a column and is never a route.
Kind = Literal["domain", "background"]


class DomainStatistics:
    """Sufficient statistics of one domain in float64.

    Attributes:
        dimension: E.
        kind: ``"domain"``, or ``"background"`` for a class that takes part in the sum and has a
            column, but is never a route (prompts of no domain).
        feature_sums: (P, E) sum over the prompts of a prototype of their mean feature.
        prototype_prompts: (P,) int64, prompts per prototype.
        view_counts: the distinct V of all updates, ascending; empty before the first.
        rows: number of view rows seen.
    """

    def __init__(self, dimension: int, prototypes: int = 1, kind: Kind = "domain") -> None:
        """Make empty statistics.

        Raises:
            ValueError: ``dimension`` or ``prototypes`` below 1.
            RouterError: an unknown kind.
        """
        if dimension < 1 or prototypes < 1:
            raise ValueError(f"dimension {dimension} and prototypes {prototypes} must be >= 1")
        if kind not in get_args(Kind):
            raise RouterError(unknown("kind of statistics", str(kind), get_args(Kind)))
        self.dimension = dimension
        self.kind: Kind = kind
        self.feature_sums: Float64Array = np.zeros((prototypes, dimension), dtype=np.float64)
        self.prototype_prompts = np.zeros(prototypes, dtype=np.int64)
        self.view_counts: tuple[int, ...] = ()
        self.rows = 0
        self._blocks: list[Float64Array] = []
        self._lower: Float64Array | None = None

    @property
    def prompts(self) -> int:
        """n: the number of prompts."""
        return int(self.prototype_prompts.sum())

    @property
    def prototypes(self) -> int:
        """P: the number of prototypes, with or without prompts."""
        return int(self.feature_sums.shape[0])

    @property
    def is_factored(self) -> bool:
        """Whether the rows are kept (fewer than E) instead of the Gram."""
        return self._lower is None

    @property
    def nbytes(self) -> int:
        """Bytes held: feature sums, counts, and the factor or the Gram."""
        held = sum(block.nbytes for block in self._blocks)
        if self._lower is not None:
            held += self._lower.nbytes
        return held + self.feature_sums.nbytes + self.prototype_prompts.nbytes

    def update(
        self, features: ArrayLike, prototype: int | Sequence[int] | np.ndarray = 0
    ) -> DomainStatistics:
        """Add n prompts, each seen in V views. Cost n V E^2 once the Gram is kept, else a copy.

        Args:
            features: (n, V, E) mapped features; converted to float64.
            prototype: the prototype of all prompts, or (n,) integers, one per prompt.
        Returns: self.

        Raises:
            ValueError: a shape or a prototype index that does not fit.
            RouterError: an entry that is not finite (names the prompt); nothing is added then.
        """
        views = np.asarray(features, dtype=np.float64)
        if views.ndim != 3 or views.shape[2] != self.dimension or views.shape[1] < 1:
            raise ValueError(f"features have shape {views.shape}; need (n, V, {self.dimension})")
        count, per_prompt, _ = views.shape
        members = self._members(prototype, count)
        finite = np.isfinite(views).all(axis=(1, 2))
        if not finite.all():
            raise RouterError(
                f"features of prompt {int(np.argmin(finite))} are not finite; nothing was added"
            )
        if count == 0:
            return self
        # One prompt at a time, in order: no regrouping of the additions, so the sums are the same
        # bits however the prompts were cut into updates.
        for member, mean in zip(members, views.mean(axis=1), strict=True):
            self.feature_sums[member] += mean
        self.prototype_prompts += np.bincount(members, minlength=self.prototypes)
        self.view_counts = tuple(sorted({*self.view_counts, per_prompt}))
        self._add_rows(views.reshape(-1, self.dimension), 1.0 / per_prompt)
        return self

    def _members(self, prototype: int | Sequence[int] | np.ndarray, count: int) -> np.ndarray:
        members = np.asarray(prototype)
        if members.ndim == 0:
            members = np.full(count, int(members))
        if members.shape != (count,) or (count and members.dtype.kind not in "iu"):
            raise ValueError(f"prototype must be an integer or ({count},) integers")
        if count and not 0 <= members.min() <= members.max() < self.prototypes:
            raise ValueError(f"prototype indices must lie in 0 ... {self.prototypes - 1}")
        return members.astype(np.int64)

    def _add_rows(self, rows: Float64Array, weight: float) -> None:
        """Fold rows into the Gram, or append a weighted copy of them to the factor."""
        self.rows += rows.shape[0]
        if self._lower is not None:
            self._lower = rank_update(self._lower, rows, weight)
            return
        self._blocks.append(rows * np.sqrt(weight))
        if self.rows >= self.dimension:
            self._lower = rank_update(zeros_lower(self.dimension), self._joined())
            self._blocks = []

    def _joined(self) -> Float64Array:
        if len(self._blocks) != 1:
            empty = np.zeros((0, self.dimension), dtype=np.float64)
            self._blocks = [np.concatenate([empty, *self._blocks])]
        return self._blocks[0]

    def gram(self) -> Float64Array:
        """Return G (E, E), exactly symmetric. A new array."""
        return mirror_lower(self.add_gram_to(zeros_lower(self.dimension)))

    def add_gram_to(self, lower: Float64Array, weight: float = 1.0) -> Float64Array:
        """Add ``weight * G`` to the lower triangle of a Fortran-ordered (E, E) matrix, in place.

        Returns: the same memory; what stands above the diagonal has no meaning.
        """
        if self._lower is None:
            return rank_update(lower, self._joined(), weight)
        lower += self._lower if weight == 1.0 else weight * self._lower
        return lower

    def factor(self) -> Float64Array:
        """Return F (r, E) with ``F^T F = G``: the kept rows, or a pivoted Cholesky factor of G."""
        if self._lower is None:
            return self._joined().copy()
        return pivoted_cholesky(self._lower)

    def __add__(self, other: DomainStatistics) -> DomainStatistics:
        """Return the statistics of both sets of prompts together.

        Raises:
            RouterError: another E, kind or number of prototypes.
        """
        if not isinstance(other, DomainStatistics):
            return NotImplemented
        for field in ("dimension", "kind", "prototypes"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise RouterError(
                    f"statistics differ in {field} ({mine} and {theirs}) and cannot be added;"
                    " make both with the same router settings"
                )
        total = DomainStatistics(self.dimension, self.prototypes, self.kind)
        total.feature_sums = self.feature_sums + other.feature_sums
        total.prototype_prompts = self.prototype_prompts + other.prototype_prompts
        total.view_counts = tuple(sorted({*self.view_counts, *other.view_counts}))
        total.rows = self.rows + other.rows
        if total.rows < self.dimension:
            total._blocks = [self._joined(), other._joined()]
        else:
            total._lower = other.add_gram_to(self.add_gram_to(zeros_lower(self.dimension)))
        return total

    def to_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the tensors and the JSON-ready metadata that define these statistics.

        Tensors: ``feature_sums`` (P, E), ``prototype_prompts`` (P,), and ``factor`` (rows, E) or
        ``gram`` (E, E).
        """
        tensors: dict[str, np.ndarray] = {
            "feature_sums": self.feature_sums,
            "prototype_prompts": self.prototype_prompts,
        }
        if self._lower is None:
            tensors["factor"] = self._joined()
        else:
            tensors["gram"] = self.gram()
        return tensors, {"kind": self.kind, "rows": self.rows, "views": list(self.view_counts)}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
    ) -> DomainStatistics:
        """Make statistics from what :meth:`to_tensors` returned.

        Raises:
            RouterError: a tensor or a field is missing, or the shapes do not fit each other.
        """
        try:
            sums = np.array(tensors["feature_sums"], dtype=np.float64)
            counts = np.array(tensors["prototype_prompts"], dtype=np.int64)
            made = cls(sums.shape[1], sums.shape[0], metadata["kind"])
            made.rows = int(metadata["rows"])
            made.view_counts = tuple(int(count) for count in metadata["views"])
            stored = tensors["gram"] if "gram" in tensors else tensors["factor"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RouterError(
                f"the statistics lack or spoil {error}; add the domain again"
            ) from error
        size = made.dimension
        expected = (size, size) if "gram" in tensors else (made.rows, size)
        factored_fits = ("gram" in tensors) == (made.rows >= size)
        if counts.shape != (sums.shape[0],) or stored.shape != expected or not factored_fits:
            raise RouterError(
                f"the statistics do not fit each other: {made.rows} rows of {size} features, but"
                f" shapes {counts.shape} and {stored.shape}; add the domain again"
            )
        made.feature_sums, made.prototype_prompts = sums, counts
        if "gram" in tensors:
            made._lower = np.array(stored, dtype=np.float64, order="F")
        else:
            made._blocks = [np.array(stored, dtype=np.float64, order="C")]
        return made
