"""The router: one linear map over features of all domains, fitted from their statistics.

Notation: m requests, d hidden size, E feature dimension, C columns of W, K domains.

    W = (sum_k w_k G_k + lambda I)^-1 Q,     Q = [w_k s_k,p]  one column per class and prototype

A fit sums the statistics of the domains it is given, in name order, and sets ridge, temperature and
thresholds anew from their calibration blocks. Nothing of an earlier fit enters. So the result is
the same, bit for bit (on one machine with the same number of threads), in whatever order the
domains are given and whatever domains were seen and removed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from asr.errors import RouterError, unknown
from asr.router.calibration import CalibrationBlock, view_thresholds
from asr.router.columns import BACKGROUND, Columns
from asr.router.decision import BASE_ROUTE, Decision, DecisionBatch, decide_scores
from asr.router.evaluation import BlockScores, evaluate, known_scores_by_view, score_blocks
from asr.router.features import FeatureMap
from asr.router.numerics import Float64Array
from asr.router.report import RouterReport, fit_warnings
from asr.router.ridge import DEFAULT_RIDGE, choose_ridge
from asr.router.settings import RouterSettings
from asr.router.statistics import DomainStatistics
from asr.router.systems import Solution, solve_recursively, solve_summed, sum_statistics


@dataclass(frozen=True)
class RoutingDomain:
    """A domain as the router sees it.

    Attributes:
        name: the domain's name; not ``"base"``, which is the route of abstaining.
        statistics: its additive statistics; of kind ``"background"`` for a class without a route.
        calibration: prompts held out from the statistics, or None.
    """

    name: str
    statistics: DomainStatistics
    calibration: CalibrationBlock | None = None


@dataclass(frozen=True)
class Router:
    """A fitted router. Make one with :meth:`fit`; it is never changed afterwards.

    Attributes:
        columns: which column of W belongs to which domain.
        weights: W (E, C) float64.
        feature_map: pooled states to features.
        settings: what it was fitted with.
        report: what the fit found.
    """

    columns: Columns
    weights: Float64Array
    feature_map: FeatureMap
    settings: RouterSettings
    report: RouterReport

    @property
    def names(self) -> tuple[str, ...]:
        """The K domains in name order: the order of the columns of :meth:`scores`."""
        return self.columns.names

    @property
    def threshold(self) -> float:
        """The score below which a request goes to the base."""
        return self.report.threshold

    @property
    def temperature(self) -> float:
        """The softmax temperature."""
        return self.report.temperature

    @classmethod
    def fit(
        cls, domains: Sequence[RoutingDomain], settings: RouterSettings, feature_map: FeatureMap
    ) -> Router:
        """Fit on the domains that are kept.

        Args:
            domains: in any order; at least one of kind ``"domain"``.
            settings: the router's settings.
            feature_map: the map the statistics were made with.

        Raises:
            RouterError: no domain; a name twice or ``"base"``; a domain without prompts; statistics
                or blocks of another size than the feature map; an expansion other than in the
                settings; a weight for a domain that does not exist; different numbers of views
                under solver ``rls``; a ridge too small to factorise.
        """
        kept = _checked(domains, settings, feature_map)
        columns = _columns(kept)
        statistics = {domain.name: domain.statistics for domain in kept}
        blocks = _blocks(kept, "domain")
        table: Any = ()
        chosen: float | None = None
        solution: Solution
        if settings.solver == "rls":
            solution = solve_recursively(statistics, settings.rls_ridge)
        else:
            gram, targets = sum_statistics(statistics, settings.domain_weights or {})
            ridge = settings.ridge
            if ridge is None and len(columns.names) > 1 and blocks:
                choice = choose_ridge(gram, targets, columns, blocks, feature_map)
                ridge, chosen, table = choice.ridge, choice.ridge, choice.table
            solution = solve_summed(gram, targets, DEFAULT_RIDGE if ridge is None else ridge)
        scores = score_blocks(blocks, feature_map, solution.weights)
        known = known_scores_by_view(scores, columns)
        thresholds = view_thresholds(known, settings.abstain)
        threshold = min(thresholds.values(), default=-np.inf)
        found = evaluate(scores, columns) if scores else None
        background = score_blocks(_blocks(kept, "background"), feature_map, solution.weights)
        calibration_prompts = {
            domain.name: 0 if domain.calibration is None else domain.calibration.prompts
            for domain in kept
        }
        report = RouterReport(
            solver=settings.solver,
            ridge=solution.ridge,
            absolute_ridge=solution.absolute_ridge,
            ridge_chosen=chosen is not None,
            ridge_table=tuple(table),
            condition=solution.condition,
            backward_error=solution.backward_error,
            prompts={name: kept_statistics.prompts for name, kept_statistics in statistics.items()},
            calibration_prompts=calibration_prompts,
            accuracy=found.accuracy if found else {},
            domain_accuracy=found.domain_accuracy if found else {},
            thresholds=thresholds,
            threshold=threshold,
            rejected={view: float(np.mean(s < threshold)) for view, s in known.items()},
            background_rejected=_rejected(background, columns, threshold),
            temperature=found.temperature if found else 1.0,
            warnings=fit_warnings(
                columns.names,
                columns.has_background,
                settings.abstain,
                calibration_prompts,
                {view: len(values) for view, values in known.items()},
                chosen,
            ),
        )
        return cls(columns, solution.weights, feature_map, settings, report)

    def scores(self, pooled: ArrayLike) -> Float64Array:
        """Return (m, K) ridge scores of pooled states (m, d), columns in the order of ``names``.

        Raises:
            RouterError: another hidden size, or an entry that is not finite.
        """
        return self.columns.domain_scores(self._raw(pooled))

    def decide_batch(self, pooled: ArrayLike) -> DecisionBatch:
        """Decide on m requests at once, as arrays.

        Args:
            pooled: (m, d), any real dtype.

        Raises:
            RouterError: another hidden size, or an entry that is not finite.
        """
        raw = self._raw(pooled)
        columns = self.columns
        return decide_scores(
            columns.names,
            columns.domain_scores(raw),
            columns.background_scores(raw) if columns.has_background else None,
            self.report.threshold,
            self.report.temperature,
        )

    def decide(self, pooled: ArrayLike) -> list[Decision]:
        """Decide on m requests (m, d); see :meth:`decide_batch`."""
        return self.decide_batch(pooled).decisions()

    def _raw(self, pooled: ArrayLike) -> Float64Array:
        states = np.asarray(pooled)
        if states.ndim != 2:
            raise RouterError(
                f"pooled features have shape {states.shape}; give one row per request, (m, d)"
            )
        raw: Float64Array = self.feature_map(states) @ self.weights
        return raw


def _checked(
    domains: Sequence[RoutingDomain], settings: RouterSettings, feature_map: FeatureMap
) -> list[RoutingDomain]:
    """Return the domains in name order, or raise as :meth:`Router.fit` says."""
    kept = sorted(domains, key=lambda domain: domain.name)
    names = [domain.name for domain in kept]
    if not any(domain.statistics.kind == "domain" for domain in kept):
        raise RouterError("there is no domain to route to; add one first")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RouterError(f"domain '{twice[0]}' is given twice; remove one of them")
    if BASE_ROUTE in names:
        raise RouterError(
            "'base' is the route of requests that no domain claims; rename the domain"
        )
    if feature_map.expansion != settings.expansion:
        raise RouterError(
            f"the feature map has expansion {feature_map.expansion}, the settings"
            f" {settings.expansion}; it cannot change once a domain has been added"
        )
    for name in settings.domain_weights or {}:
        if name not in names:
            raise RouterError(unknown("domain in router.domain_weights", name, names))
    for domain in kept:
        if domain.statistics.prompts == 0:
            raise RouterError(f"domain '{domain.name}' has no prompts; add it with data")
        if domain.statistics.dimension != feature_map.dimension:
            raise RouterError(
                f"domain '{domain.name}' has statistics of {domain.statistics.dimension} features,"
                f" the feature map makes {feature_map.dimension}; add it again with this base"
            )
        block = domain.calibration
        if block is not None and block.hidden_size != feature_map.hidden_size:
            raise RouterError(
                f"domain '{domain.name}' has calibration features of {block.hidden_size}, the base"
                f" has {feature_map.hidden_size}; add it again with this base"
            )
    return kept


def _columns(kept: Sequence[RoutingDomain]) -> Columns:
    names = tuple(domain.name for domain in kept if domain.statistics.kind == "domain")
    owners: list[int] = []
    for domain in kept:
        routed = domain.statistics.kind == "domain"
        owner = names.index(domain.name) if routed else BACKGROUND
        owners.extend([owner] * int(np.count_nonzero(domain.statistics.prototype_prompts)))
    return Columns(names, tuple(owners))


def _blocks(kept: Sequence[RoutingDomain], kind: str) -> dict[str, CalibrationBlock]:
    """The blocks with prompts of all classes of a kind."""
    return {
        domain.name: domain.calibration
        for domain in kept
        if domain.statistics.kind == kind and domain.calibration and domain.calibration.prompts
    }


def _rejected(
    scores: BlockScores, columns: Columns, threshold: float
) -> dict[str, dict[str, float]]:
    return {
        name: {
            view: float(np.mean(columns.known_scores(raw) < threshold))
            for view, raw in views.items()
        }
        for name, views in scores.items()
    }
