"""The router's regression as an estimator on plain arrays, without a language model.

    router = AnalyticRouter().fit(X, y)                 # (n, d) features, (n,) labels
    router.partial_fit(more, labels)                    # also of new classes, in any order
    router.predict(X), router.predict_proba(X), router.decision_function(X)

Notation: n rows, d features given, E features after the map, K classes, P prototypes.

scikit-learn's conventions, and its own checks pass (tests/router/test_analytic.py), but it need not
be installed. What is kept are sums per class (:class:`asr.router.statistics.DomainStatistics`), or
the recursion's state, so any order and batching of ``partial_fit`` gives the classifier of one
``fit`` (to rounding: 1e-9). A class that comes again is no special case: adding to its sums is
GACL's split into exposed and unexposed classes (arXiv 2403.15706).

Parameters that are changed after a fit hold from the next one.

Left out on purpose: weights frozen when rows arrive (L3A), which depend on the order; per-sample
weights; multi-label targets.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asr.router.calibration import fit_temperature
from asr.router.estimator_base import Estimator, not_fitted, plain_array, plain_labels
from asr.router.features import DEFAULT_SEED, FeatureMap
from asr.router.numerics import Float64Array
from asr.router.recursive import RecursiveLeastSquares
from asr.router.solve import RidgeFactor, absolute_ridge
from asr.router.statistics import DomainStatistics
from asr.router.systems import sum_statistics

BLOCK_ROWS = 4096
"""Rows converted to float64 at once: a GPU array in bfloat16 is never copied as a whole."""

HELD_OUT_ROWS = 2048
"""Most rows kept for calibration."""


class AnalyticRouter(Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """Ridge classifier in closed form that takes rows and classes as they come.

    Args:
        solver: ``direct`` (one Cholesky solve over the sums, when first needed) or ``rls``
            (recursive least squares: weights are current after every batch).
        ridge: for ``direct`` relative to trace(G) / E; for ``rls`` absolute.
        normalise: bring every row to mean 0 and variance 1 first (LayerNorm), as the router of a
            model does; right for hidden states, wrong for a few features on scales of their own.
        expansion: E of the random ReLU expansion, 0 for none.
        seed: of the expansion and of the prototypes.
        class_weight: None, ``balanced`` (every class the same, from the counts at solve time, so
            that no order can matter; the order-free form of AIR, arXiv 2408.10349), or a mapping.
            ``direct`` only.
        prototypes: P columns per class, of which the largest wins. Rows are dealt to them by the
            largest of P fixed random projections: no clustering, so that no order can matter.
        held_out: share of the rows, chosen by a hash of their content, that calibrates
            ``predict_proba`` and is not learned from; at most 2,048 of them, the rest is learned
            from. A class that has held-out rows only learns from them.

    Attributes:
        classes_: (K,) labels in sorted order.
        n_samples_seen_: rows given so far, those held out included.
        n_features_in_: d.
        coef_: W (E, columns) float64, columns in the order of ``owners_``.
        owners_: (columns,) index into ``classes_`` of each column.
        temperature_: of the softmax of ``predict_proba``.
    """

    def __init__(
        self,
        solver: str = "direct",
        ridge: float = 1e-3,
        normalise: bool = False,
        expansion: int = 0,
        seed: int = DEFAULT_SEED,
        class_weight: str | Mapping[Any, float] | None = None,
        prototypes: int = 1,
        held_out: float = 0.1,
    ) -> None:
        self.solver = solver
        self.ridge = ridge
        self.normalise = normalise
        self.expansion = expansion
        self.seed = seed
        self.class_weight = class_weight
        self.prototypes = prototypes
        self.held_out = held_out

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from these rows alone; what was learned before is forgotten.

        Args:
            X: (n, d) real numbers: numpy of any float type, or a torch tensor on any device.
            y: (n,) labels.

        Raises:
            ValueError: wrong shapes, no rows, one class only, an entry that is not finite, or a
                parameter out of range.
            RouterError: a ridge too small for the system (names one that works).
        """
        self.__dict__.pop("_state", None)
        self.partial_fit(X, y)
        if len(self.classes_) < 2:
            raise ValueError("y has one class; a classifier needs 2 classes or more")
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Learn from more rows, of known classes and of new ones.

        Args:
            X: (n, d) as for :meth:`fit`.
            y: (n,) labels.
            classes: labels to know before rows of them come; needed by nothing here.

        Raises:
            ValueError, RouterError: as :meth:`fit`, but for one class.
        """
        rows = plain_array(X, self, first="_state" not in vars(self))
        labels = plain_labels(y, len(rows))
        if "_state" not in vars(self):
            self._check_parameters()
            self._state = _State(self, int(rows.shape[1]))
            self.n_samples_seen_ = 0
        self._state.add(rows, labels, None if classes is None else np.asarray(classes))
        self.classes_ = self._state.classes()
        self.n_samples_seen_ += len(rows)
        return self

    @property
    def coef_(self) -> Float64Array:
        """W (E, columns)."""
        return self._fitted().solution()[0]

    @property
    def owners_(self) -> NDArray[np.int64]:
        """(columns,) index into ``classes_``."""
        return self._fitted().solution()[1]

    @property
    def temperature_(self) -> float:
        """Of the softmax of ``predict_proba``."""
        return self._fitted().solution()[2]

    def decision_function(self, X: ArrayLike) -> Float64Array:
        """Return (n, K) scores in the order of ``classes_``.

        With two classes (n,): the score of the second less that of the first.

        Raises:
            ValueError: another width, an entry that is not finite, or nothing is fitted.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return (n,) labels, the class of the largest score; raises as the decision function."""
        best = self._scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: ArrayLike) -> Float64Array:
        """Return (n, K) probabilities: softmax at the temperature that fits the held-out rows."""
        scaled = self._scores(X) / self.temperature_
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        made: Float64Array = shares / shares.sum(axis=1, keepdims=True)
        return made

    def _scores(self, X: ArrayLike) -> Float64Array:
        state = self._fitted()
        rows = plain_array(X, self, first=False)
        return state.scores(rows, *state.solution()[:2])

    def _fitted(self) -> _State:
        if "_state" not in vars(self):
            raise not_fitted(self)
        state: _State = self._state
        return state

    def _check_parameters(self) -> None:
        if self.solver not in ("direct", "rls"):
            raise ValueError(f"solver is {self.solver!r}; it is 'direct' or 'rls'")
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge!r}; it must be above 0")
        if self.prototypes < 1:
            raise ValueError(f"prototypes is {self.prototypes!r}; it must be 1 or more")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out!r}; it must be in 0 ... 1")
        weights = self.class_weight
        if weights is not None and weights != "balanced" and not isinstance(weights, Mapping):
            raise ValueError(f"class_weight is {weights!r}; it is None, 'balanced' or a mapping")
        if weights is not None and self.solver == "rls":
            raise ValueError("solver 'rls' counts every row once; class_weight needs 'direct'")


@dataclass(frozen=True)
class _HeldRow:
    """A row held out, its label, and how often it came with that label."""

    row: Float64Array
    label: Any
    count: int


class _State:
    """What is kept of the rows: sums per class, or the recursion; and the held-out rows."""

    def __init__(self, router: AnalyticRouter, width: int) -> None:
        self.settings = router
        self.map = FeatureMap(width, router.expansion, router.seed)
        generator = np.random.Generator(np.random.Philox(router.seed))
        self.directions = generator.standard_normal((width, router.prototypes))
        self.counts: dict[Any, int] = {}
        self.sums: dict[Any, DomainStatistics] = {}
        self.recursion = (
            RecursiveLeastSquares(self.map.dimension, router.ridge)
            if router.solver == "rls"
            else None
        )
        self.columns: dict[tuple[Any, int], int] = {}
        self.kept: dict[tuple[bytes, str], _HeldRow] = {}
        self.solved: tuple[Float64Array, NDArray[np.int64], float] | None = None

    def classes(self) -> NDArray[Any]:
        return np.array(sorted(self.counts))

    def add(self, rows: Any, labels: NDArray[Any], classes: NDArray[Any] | None) -> None:
        self.solved = None
        for label in [] if classes is None else classes.tolist():
            self.counts.setdefault(label, 0)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = plain_block(rows[start : start + BLOCK_ROWS])
            own = np.array(labels[start : start + BLOCK_ROWS].tolist(), dtype=object)
            held = self._hold_out(block, own)
            features, dealt = self._features(block)
            for label in dict.fromkeys(own.tolist()):
                of_label = np.asarray(own == label)
                self.counts[label] = self.counts.get(label, 0) + int(of_label.sum())
                mine = of_label & ~held
                self._learn(label, features[mine], dealt[mine])
            self._let_go()

    def _features(self, block: Float64Array) -> tuple[Float64Array, NDArray[np.int64]]:
        """(m, E) features of rows, and the prototype that each is dealt to."""
        rows = self.map.normalise(block) if self.settings.normalise else block
        return self.map.expand(rows), (rows @ self.directions).argmax(axis=1)

    def _learn(self, label: Any, features: Float64Array, dealt: NDArray[np.int64]) -> None:
        if self.recursion is not None:
            for prototype in range(self.settings.prototypes):
                rows = features[dealt == prototype]
                if len(rows):
                    key = (label, prototype)
                    column = self.columns.setdefault(key, len(self.columns))
                    self.recursion.partial_fit(rows, column)
            return
        if label not in self.sums:
            self.sums[label] = DomainStatistics(self.map.dimension, self.settings.prototypes)
        self.sums[label].update(features[:, None, :], dealt)

    def _hold_out(self, block: Float64Array, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Whose hash says so, whatever came before; the lowest hashes are kept."""
        held = np.zeros(len(block), dtype=bool)
        if self.settings.held_out == 0:
            return held
        for place, row in enumerate(block):
            digest = hashlib.sha256(row.tobytes()).digest()[:8]
            if int.from_bytes(digest, "big") < self.settings.held_out * 2**64:
                held[place] = True
                key = (digest, repr(labels[place]))
                before = self.kept.get(key)
                count = 1 if before is None else before.count + 1
                self.kept[key] = _HeldRow(row, labels[place], count)
        return held

    def _let_go(self) -> None:
        """Learn from the held-out rows beyond the lowest hashes after all."""
        for key in sorted(self.kept)[HELD_OUT_ROWS:]:
            gone = self.kept.pop(key)
            self._learn(gone.label, *self._features(np.repeat(gone.row[None], gone.count, axis=0)))

    def solution(self) -> tuple[Float64Array, NDArray[np.int64], float]:
        """W, the owners of its columns, and the temperature; solved when first asked for."""
        if self.solved is None:
            whole = self._with_every_class()
            weights, owners = whole._solve()
            _warn_of_twins(weights, owners, self.classes())
            self.solved = weights, owners, self._temperature(weights, owners)
        return self.solved

    def _with_every_class(self) -> _State:
        """This state, or a copy in which classes that have held-out rows only learn from them."""
        learned = set(self.sums) | {label for label, _ in self.columns}
        learned -= {label for label, own in self.sums.items() if own.prompts == 0}
        missing = [label for label, count in self.counts.items() if count and label not in learned]
        if not missing:
            return self
        whole = copy.deepcopy(self)
        for label in missing:
            held = [own for _, own in sorted(self.kept.items()) if own.label == label]
            if held:
                block = np.repeat([own.row for own in held], [own.count for own in held], axis=0)
                whole._learn(label, *self._features(block))
        return whole

    def _solve(self) -> tuple[Float64Array, NDArray[np.int64]]:
        order = {label: index for index, label in enumerate(self.classes().tolist())}
        if self.recursion is not None:
            keys = sorted(self.columns, key=lambda key: (order[key[0]], key[1]))
            places = [self.columns[key] for key in keys]
            return self.recursion.coef_[:, places], np.array([order[key[0]] for key in keys])
        names = {f"{order[label]:08}": label for label in self.sums if self.sums[label].prompts}
        statistics = {name: self.sums[label] for name, label in names.items()}
        gram, targets = sum_statistics(statistics, self._weights(names))
        factor = RidgeFactor(gram, absolute_ridge(gram, self.settings.ridge))
        owners = [
            order[names[name]]
            for name in sorted(statistics)
            for count in statistics[name].prototype_prompts
            if count > 0
        ]
        return factor.solve(targets), np.array(owners)

    def _weights(self, names: Mapping[str, Any]) -> dict[str, float]:
        weights = self.settings.class_weight
        if weights is None:
            return {}
        if isinstance(weights, Mapping):
            return {name: float(weights.get(label, 1.0)) for name, label in names.items()}
        total = sum(self.sums[label].prompts for label in names.values())
        return {
            name: total / (len(names) * self.sums[label].prompts) for name, label in names.items()
        }

    def scores(self, rows: Any, weights: Float64Array, owners: NDArray[np.int64]) -> Float64Array:
        classes = len(self.counts)
        found = np.full((len(rows), classes), -np.inf)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = plain_block(rows[start : start + BLOCK_ROWS])
            raw = self._features(block)[0] @ weights
            for column, owner in enumerate(owners):
                part = found[start : start + BLOCK_ROWS, owner]
                np.maximum(part, raw[:, column], out=part)
        # a class that is announced and has no row yet: below every other
        found[np.isinf(found)] = found[np.isfinite(found)].min(initial=0.0) - 1.0
        return found

    def _temperature(self, weights: Float64Array, owners: NDArray[np.int64]) -> float:
        if not self.kept:
            return 1.0
        kept = [self.kept[key] for key in sorted(self.kept)]
        order = {label: index for index, label in enumerate(self.classes().tolist())}
        scores = self.scores(np.stack([own.row for own in kept]), weights, owners)
        labels = np.array([order[own.label] for own in kept])
        return fit_temperature(scores, labels, np.array([float(own.count) for own in kept]))


def plain_block(block: Any) -> Float64Array:
    """Rows as float64 numpy, wherever they lie."""
    if hasattr(block, "detach"):
        block = block.detach().to("cpu").double().numpy()
    return np.ascontiguousarray(block, dtype=np.float64)


def _warn_of_twins(weights: Float64Array, owners: NDArray[np.int64], classes: NDArray[Any]) -> None:
    """Warn where two classes have the same columns: nothing in their rows tells them apart."""
    sizes = np.linalg.norm(weights, axis=0)
    order = np.argsort(sizes, kind="stable")
    for one, two in pairwise(order):
        close = np.linalg.norm(weights[:, one] - weights[:, two]) <= 1e-9 * sizes[two]
        if close and owners[one] != owners[two]:
            first, second = sorted((owners[one], owners[two]))
            warnings.warn(
                f"classes {classes[first]!r} and {classes[second]!r} have the same rows: they"
                " cannot be told apart",
                UserWarning,
                stacklevel=5,
            )
