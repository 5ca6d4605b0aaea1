"""Routers to compare: ours and what people have at hand, behind one interface.

Each learns class after class; what it must keep of old ones differs, and so does what another class
costs. Those that read text get (n, V) texts, the others (n, V, d) arrays; all V views of a prompt
are rows. Every method has the background class (names that begin with ``_``), and its score for
*known* is the best domain over the background unless it is said otherwise.

Notation: n prompts, V views, m requests, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from asr.router import (
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
)

BACKGROUND_SIZE = 0.5
"""Average domains that the background weighs in a regression, as in our router."""

RIDGES = (0.1, 1.0, 10.0)
"""Tried on the held-out prompts by every ridge regression that is not ours (ours has its own)."""


@dataclass(frozen=True)
class Scored:
    """Scores of m requests: ``names`` (K,), ``domains`` (m, K), ``known`` (m,), ``abstained``.

    ``abstained`` (m,) is None where a method has no threshold of its own.
    """

    names: tuple[str, ...]
    domains: np.ndarray
    known: np.ndarray
    abstained: np.ndarray | None = None

    @property
    def best(self) -> np.ndarray:
        """(m,) names of the best domains."""
        best: np.ndarray = np.array(self.names)[self.domains.argmax(axis=1)]
        return best


class Method(Protocol):
    """A router of the comparison. ``keeps`` says what of old classes it needs for a new one."""

    keeps: str

    def add(self, name: str, rows: Any, held_out: Any) -> None:
        """Take in one class."""
        ...

    def solve(self) -> None:
        """Be current."""
        ...

    def scores(self, rows: Any) -> Scored:
        """Score m requests: (m,) texts, or (m, d)."""
        ...


def is_background(name: str) -> bool:
    """Whether a class has no route."""
    return name.startswith("_")


def over_background(names: Sequence[str], scores: np.ndarray) -> Scored:
    """Split (m, classes) scores into domains and background; known: best of each, difference."""
    inner = [index for index, name in enumerate(names) if not is_background(name)]
    outer = [index for index, name in enumerate(names) if is_background(name)]
    domains = scores[:, inner]
    known = domains.max(axis=1)
    if outer:
        known = known - scores[:, outer].max(axis=1)
    return Scored(tuple(names[index] for index in inner), domains, known)


class OurRouter:
    """The analytic router with its default settings."""

    keeps = "sums, held-out features"

    def __init__(self, width: int, views: Sequence[str]) -> None:
        self._map = FeatureMap(width)
        self._views = tuple(views)
        self._domains: dict[str, RoutingDomain] = {}
        self._router: Router | None = None

    def add(self, name: str, rows: np.ndarray, held_out: np.ndarray) -> None:
        """Sum up a domain. Parts of the background are one class, as in a model."""
        background = is_background(name)
        features = self._map(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:2], -1)
        statistics = DomainStatistics(
            self._map.dimension, kind="background" if background else "domain"
        ).update(features)
        block = None
        if len(held_out):
            block = CalibrationBlock(held_out, self._views)
        known = "_background" if background else name
        before = self._domains.get(known)
        if before is not None:
            statistics = before.statistics + statistics
            parts = [part for part in (before.calibration, block) if part is not None]
            block = parts[0] + parts[1] if len(parts) == 2 else next(iter(parts), None)
        self._domains[known] = RoutingDomain(known, statistics, block)

    def solve(self) -> None:
        """Fit from the sums."""
        self._router = Router.fit(list(self._domains.values()), RouterSettings(), self._map)

    def scores(self, rows: np.ndarray) -> Scored:
        """Score pooled states."""
        assert self._router is not None
        batch = self._router.decide_batch(rows)
        return Scored(self._router.names, batch.scores, batch.score, batch.abstained)


class _Rows:
    """Keeps the rows of every class, as they were given."""

    keeps = "all prompts"

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Any]] = {}

    def add(self, name: str, rows: Any, held_out: Any) -> None:
        """Keep the rows."""
        self._kept[name] = (rows, held_out)

    def _labels(self, side: int) -> np.ndarray:
        """The class of each row, as an index in the order of the names."""
        sizes = [sum(len(views) for views in pair[side]) for pair in self._kept.values()]
        return np.repeat(np.arange(len(sizes)), sizes)

    def _weights(self, labels: np.ndarray) -> np.ndarray:
        """Weight of each row: 1, and the background as large as half an average domain."""
        names = list(self._kept)
        outer = np.isin(labels, [i for i, name in enumerate(names) if is_background(name)])
        weights = np.ones(len(labels))
        domains = sum(not is_background(name) for name in names)
        if outer.any():
            weights[outer] = BACKGROUND_SIZE * (~outer).sum() / domains / outer.sum()
        return weights

    def _fit_ridge(self, rows: Any, held_out: Any) -> Ridge:
        """One-hot ridge regression; the ridge with the best balanced accuracy on held-out rows."""
        labels, truth = self._labels(0), self._labels(1)
        targets = np.eye(len(self._kept))[labels]
        solver = "sparse_cg" if sparse.issparse(rows) else "cholesky"
        best: tuple[float, float] | None = None
        chosen: Ridge | None = None
        for ridge in RIDGES:
            model = Ridge(ridge, solver=solver, tol=1e-3)
            model.fit(rows, targets, sample_weight=self._weights(labels))
            found = model.predict(held_out).argmax(axis=1) == truth
            accuracy = float(np.mean([found[truth == label].mean() for label in np.unique(truth)]))
            if best is None or (accuracy, ridge) > best:
                best, chosen = (accuracy, ridge), model
        assert chosen is not None
        return chosen


class TfidfRidge(_Rows):
    """Ridge regression on word and word-pair counts, TF-IDF weighted."""

    def solve(self) -> None:
        """Make the vocabulary and the regression anew."""
        self._vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        sides = [
            [text for pair in self._kept.values() for views in pair[side] for text in views]
            for side in (0, 1)
        ]
        rows = self._vectors.fit_transform(sides[0])
        self._model = self._fit_ridge(rows, self._vectors.transform(sides[1]))

    def scores(self, rows: Sequence[str]) -> Scored:
        """Score texts."""
        found = self._model.predict(self._vectors.transform(rows))
        return over_background(list(self._kept), found)


class EmbeddingRidge(_Rows):
    """Ridge regression on sentence embeddings."""

    def solve(self) -> None:
        """Fit on the rows of all classes."""
        sides = [
            np.concatenate([pair[side].reshape(-1, pair[side].shape[-1]) for pair in kept])
            for side, kept in ((0, self._kept.values()), (1, self._kept.values()))
        ]
        self._model = self._fit_ridge(sides[0], sides[1])

    def scores(self, rows: np.ndarray) -> Scored:
        """Score embeddings."""
        return over_background(list(self._kept), self._model.predict(rows))


class Neighbours:
    """Cosine to the ``count`` nearest rows of each class (mean), held-out rows among them."""

    keeps = "all embeddings"

    def __init__(self, count: int = 5, background: bool = True) -> None:
        self._count, self._background = count, background
        self._kept: dict[str, np.ndarray] = {}

    def add(self, name: str, rows: np.ndarray, held_out: np.ndarray) -> None:
        """Keep a class's rows."""
        if self._background or not is_background(name):
            self._kept[name] = self._reduce(
                _unit(np.concatenate([rows, held_out]).reshape(-1, rows.shape[-1]))
            )

    def _reduce(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def solve(self) -> None:
        """Nothing is left to do."""

    def scores(self, rows: np.ndarray) -> Scored:
        """Score embeddings. Without background: known is the best domain's similarity."""
        units = _unit(rows)
        found = []
        for kept in self._kept.values():
            count = min(self._count, len(kept))
            similar = units @ kept.T
            found.append(np.partition(similar, -count, axis=1)[:, -count:].mean(axis=1))
        return over_background(list(self._kept), np.stack(found, axis=1))


class Centroids(Neighbours):
    """Cosine to the mean row of each class."""

    keeps = "one vector a domain"

    def _reduce(self, rows: np.ndarray) -> np.ndarray:
        return _unit(rows.mean(axis=0, keepdims=True))


class SequentialHead:
    """A linear softmax head on our features, trained by Adam on one class after the other.

    Nothing of old classes is kept but the head itself; that is what forgetting comes from. The
    background comes first. A class is trained on for ``epochs`` passes, with all others' rows gone.
    """

    keeps = "the head"

    def __init__(self, width: int, rate: float = 1e-3, epochs: int = 5, seed: int = 0) -> None:
        self._map = FeatureMap(width)
        self._rate, self._epochs = rate, epochs
        self._generator = torch.Generator().manual_seed(seed)
        self._names: list[str] = []
        self._weights = torch.zeros((self._map.dimension, 0))

    def add(self, name: str, rows: np.ndarray, held_out: np.ndarray) -> None:
        """Train on a class."""
        self._names.append(name)
        column = torch.zeros((self._map.dimension, 1))
        self._weights = torch.cat([self._weights, column], dim=1).requires_grad_()
        features = self._features(rows.reshape(-1, rows.shape[-1]))
        label = torch.tensor(len(self._names) - 1)
        optimiser = torch.optim.Adam([self._weights], lr=self._rate)
        for _ in range(self._epochs):
            for batch in torch.randperm(len(features), generator=self._generator).split(64):
                logits = features[batch] @ self._weights
                loss = torch.nn.functional.cross_entropy(logits, label.expand(len(batch)))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        self._weights = self._weights.detach()

    def solve(self) -> None:
        """Nothing is left to do."""

    def scores(self, rows: np.ndarray) -> Scored:
        """Score pooled states."""
        return over_background(self._names, (self._features(rows) @ self._weights).numpy())

    def _features(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._map(rows)).float()


def _unit(rows: np.ndarray) -> np.ndarray:
    made: np.ndarray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return made
