"""The T x T matrix of an evaluated sequence, and how it stands in ``eval/matrix.json``.

It holds means, intervals and counts, no example; metrics are computed from it on demand. Text in,
text out: where the JSON is written, and atomically, is the model directory's business.

Notation for shapes:
    T: domains trained so far, in order.  Rows k: "after domain k".  Columns j: the domain scored.
    Cells with j > k (not yet trained) are NaN here and null in JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from asr.errors import DirectoryError
from asr.eval import metrics
from asr.eval.intervals import Interval, mean_interval, wilson
from asr.eval.registry import get_scorer

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Which = Literal["routed", "oracle", "base"]

SCHEMA_VERSION = 1
KINDS = ("templated", "bare")


@dataclass(frozen=True)
class Scores:
    """Scores of one domain's prompts: ``values`` (n,), and ``weights`` (n,) for a loss (tokens)."""

    values: Sequence[float] | Floats
    weights: Sequence[float] | Floats | None = None

    def interval(self) -> Interval:
        """Return the 95% interval of the (weighted) mean.

        Raises:
            ValueError: if the scores are empty, not finite, or weights do not fit.
        """
        return mean_interval(self.values, self.weights)


def _nans(*shape: int) -> Floats:
    return np.full(shape, np.nan)


@dataclass(eq=False)
class EvalMatrix:
    """Scores after every domain of a sequence, routed and with the right adapter forced.

    Attributes:
        kind: "templated" (prompts as trained) or "bare" (without the domain's instruction).
        domains: names in training order; scorers: the scorer of each.
        higher_is_better: direction per domain; n: prompts per domain (0: none scored yet).
        base, base_interval: (T,) and (T, 2); the base alone, no adapter.
        routed, routed_interval: (T, T) and (T, T, 2); the router chose.
        oracle, oracle_interval: the same with the domain's own adapter forced.
        routing_accuracy: (T, T); share of domain j's prompts sent to j after domain k.
        confusion: (T, T + 1) counts after the last domain; the last column is the base.
    """

    kind: str
    domains: list[str] = field(default_factory=list)
    scorers: list[str] = field(default_factory=list)
    higher_is_better: list[bool] = field(default_factory=list)
    n: list[int] = field(default_factory=list)
    base: Floats = field(default_factory=lambda: _nans(0))
    base_interval: Floats = field(default_factory=lambda: _nans(0, 2))
    routed: Floats = field(default_factory=lambda: _nans(0, 0))
    routed_interval: Floats = field(default_factory=lambda: _nans(0, 0, 2))
    oracle: Floats = field(default_factory=lambda: _nans(0, 0))
    oracle_interval: Floats = field(default_factory=lambda: _nans(0, 0, 2))
    routing_accuracy: Floats = field(default_factory=lambda: _nans(0, 0))
    confusion: Counts = field(default_factory=lambda: np.zeros((0, 1), dtype=np.int64))

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got '{self.kind}'")

    @classmethod
    def from_scores(
        cls,
        kind: str,
        scorers: Mapping[str, str],
        routed: Mapping[tuple[str, str], Scores],
        oracle: Mapping[tuple[str, str], Scores] | None = None,
        base: Mapping[str, Scores] | None = None,
        routes: Mapping[tuple[str, str], Sequence[str | None]] | None = None,
    ) -> EvalMatrix:
        """Build the whole matrix at once; cells that are absent stay NaN.

        Args:
            kind: "templated" or "bare".
            scorers: domain -> scorer name; its order is the training order.
            routed: (after, domain) -> scores.
            oracle: (after, domain) -> scores with the domain's own adapter.
            base: domain -> scores of the base alone.
            routes: (after, domain) -> where each prompt was sent; None is an abstention.

        Raises:
            ConfigError: if a scorer does not exist.
            ValueError: as in :meth:`record`, or if a key names no domain of ``scorers``.
        """
        matrix = cls(kind)
        cells = set(routed) | set(oracle or {}) | set(routes or {})
        named = {name for cell in cells for name in cell} | set(base or {})
        if strangers := named - set(scorers):
            raise ValueError(f"scores for unknown domains: {', '.join(sorted(strangers))}")
        for after in scorers:
            matrix.add_domain(after, scorers[after], (base or {}).get(after))
            for domain in scorers:
                if (after, domain) in cells:
                    cell = (after, domain)
                    matrix.record(
                        *cell,
                        routed=routed.get(cell),
                        oracle=(oracle or {}).get(cell),
                        routes=(routes or {}).get(cell),
                    )
        return matrix

    def add_domain(self, name: str, scorer: str, base: Scores | None = None) -> None:
        """Append a row and a column for a domain that was just trained.

        The confusion is emptied: what was counted before was another router's.

        Raises:
            ConfigError: if the scorer does not exist.
            ValueError: if the domain is there already or is called "base", or ``base`` is bad.
        """
        if name in self.domains or name == metrics.BASE:
            raise ValueError(f"domain '{name}' is in the matrix already, or reserved")
        better = get_scorer(scorer).higher_is_better
        score = None if base is None else base.interval()
        old, new = len(self.domains), len(self.domains) + 1
        for key in ("routed", "oracle", "routing_accuracy"):
            grown = _nans(new, new)
            grown[:old, :old] = getattr(self, key)
            setattr(self, key, grown)
        for key in ("routed_interval", "oracle_interval"):
            wide = _nans(new, new, 2)
            wide[:old, :old] = getattr(self, key)
            setattr(self, key, wide)
        self.base = np.append(self.base, math.nan if score is None else score.mean)
        bounds = [math.nan] * 2 if score is None else [score.low, score.high]
        self.base_interval = np.vstack([self.base_interval, bounds])
        self.confusion = np.zeros((new, new + 1), dtype=np.int64)
        self.domains.append(name)
        self.scorers.append(scorer)
        self.higher_is_better.append(better)
        self.n.append(0 if score is None else score.n)

    def record(
        self,
        after: str,
        domain: str,
        *,
        routed: Scores | None = None,
        oracle: Scores | None = None,
        routes: Sequence[str | None] | None = None,
    ) -> None:
        """Enter the scores of ``domain`` measured after training ``after``.

        Raises:
            ValueError: if a name is not in the matrix; if ``domain`` was trained after ``after``;
                if the number of prompts differs from what was recorded for the domain before
                (cells over other prompts do not compare); if scores or routes are bad.
        """
        k, j = self._index(after), self._index(domain)
        if j > k:
            raise ValueError(f"'{domain}' was trained after '{after}': nothing to record")
        # Everything is checked before anything is entered.
        first = None if routed is None else routed.interval()
        second = None if oracle is None else oracle.interval()
        counts = None if routes is None else self._count(k, j, routes)
        sizes = {score.n for score in (first, second) if score is not None}
        sizes |= {len(routes)} if routes is not None else set()
        if self.n[j]:
            sizes.add(self.n[j])
        if len(sizes) > 1:
            raise ValueError(
                f"'{domain}' was scored on different numbers of prompts: "
                f"{', '.join(map(str, sorted(sizes)))}"
            )
        self.n[j] = max(sizes, default=0)
        if first is not None:
            self.routed[k, j] = first.mean
            self.routed_interval[k, j] = first.low, first.high
        if second is not None:
            self.oracle[k, j] = second.mean
            self.oracle_interval[k, j] = second.low, second.high
        if counts is not None:
            self.routing_accuracy[k, j] = counts[j] / counts.sum()
            if k == len(self.domains) - 1:
                self.confusion[j] = counts

    def op(self, which: Which = "routed") -> float | None:
        """Return OP (:func:`asr.eval.metrics.overall_performance`) of the named scores."""
        if not self.domains:
            return None
        rows = np.tile(self.base, (len(self.base), 1)) if which == "base" else getattr(self, which)
        return metrics.overall_performance(rows, self.higher_is_better)

    def bwt(self, which: Literal["routed", "oracle"] = "routed") -> float | None:
        """Return BWT (:func:`asr.eval.metrics.backward_transfer`) of the named scores."""
        if not self.domains:
            return None
        return metrics.backward_transfer(getattr(self, which), self.higher_is_better)

    def routing(self) -> Interval | None:
        """Return routing accuracy after the last domain over all prompts, or None."""
        mean, total = metrics.routing_accuracy(self.confusion), int(self.confusion.sum())
        if mean is None:
            return None
        low, high = wilson(int(np.trace(self.confusion)), total)
        return Interval(mean, low, high, total, "wilson")

    def to_json(self) -> str:
        """Return the matrix as JSON: sorted keys, NaN as null, equal matrices equal texts."""
        record: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for key, value in vars(self).items():
            record[key] = _plain(value.tolist()) if isinstance(value, np.ndarray) else value
        return json.dumps(record, sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "matrix.json") -> EvalMatrix:
        """Return the matrix that :meth:`to_json` wrote; ``source`` names the file in errors.

        Raises:
            DirectoryError: if the text is not JSON, has another schema version, or lacks, adds
                or misshapes a field.
        """
        remake = "run the evaluation again to write it anew"
        try:
            record = json.loads(text)
        except ValueError as error:
            raise DirectoryError(f"{source} is not JSON ({error}); {remake}") from error
        version = record.pop("schema_version", None) if isinstance(record, dict) else None
        if version != SCHEMA_VERSION:
            raise DirectoryError(
                f"{source} has schema version {version}, this ASR reads {SCHEMA_VERSION}; {remake}"
            )
        try:
            size = len(record["domains"])
            for key, shape in _shapes(size).items():
                array = np.array(record[key], dtype=np.int64 if key == "confusion" else np.float64)
                if size and array.shape != shape:
                    raise ValueError(f"{key} has shape {array.shape}, not {shape}")
                record[key] = array.reshape(shape)
            matrix = cls(**record)
            if {len(matrix.scorers), len(matrix.n), len(matrix.higher_is_better)} != {size}:
                raise ValueError("scorers, n and higher_is_better need one entry per domain")
        except (KeyError, TypeError, ValueError) as error:
            raise DirectoryError(f"{source} is damaged ({error}); {remake}") from error
        return matrix

    def _index(self, domain: str) -> int:
        if domain not in self.domains:
            raise ValueError(f"no domain '{domain}' in the matrix of: {', '.join(self.domains)}")
        return self.domains.index(domain)

    def _count(self, k: int, j: int, routes: Sequence[str | None]) -> Counts:
        """Return (T + 1,) counts of where domain j's prompts went after domain k."""
        domain = self.domains[j]
        if not routes:
            raise ValueError(f"routes of '{domain}' are empty")
        row: Counts = metrics.confusion([domain] * len(routes), routes, self.domains)[j]
        if row[k + 1 : -1].any():
            raise ValueError(
                f"routes of '{domain}' name a domain trained after '{self.domains[k]}'"
            )
        return row


def _shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array field for T = ``size``."""
    square, wide = (size, size), (size, size, 2)
    return {
        "base": (size,),
        "base_interval": (size, 2),
        "routed": square,
        "routed_interval": wide,
        "oracle": square,
        "oracle_interval": wide,
        "routing_accuracy": square,
        "confusion": (size, size + 1),
    }


def _plain(value: Any) -> Any:
    """Return nested lists with None in place of NaN, which JSON does not have."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
