"""The router: one linear map over features of all domains, fitted from their statistics.

Notation: m requests, d hidden size, E feature dimension, C columns of W, K domains.

    W = (sum_k w_k G_k + lambda I)^-1 Q,     Q = [w_k s_k,p]  one column per class and prototype

with w_k = 1 for a domain unless the settings say otherwise, and a background class as large as half
an average domain (solver ``rls``, which knows unit weights only: as it is).

Beside W stand two things that follow from the same statistics and blocks (asr/router/scoring.py).
A fit sums the statistics of the domains it is given, in name order, and sets ridge, temperature and
thresholds anew from their calibration blocks. Nothing of an earlier fit enters. So the result is
the same, bit for bit (on one machine with the same number of threads), in whatever order the
domains are given and whatever domains were seen and removed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from asr.errors import RouterError, unknown
from asr.router.calibration import CalibrationBlock
from asr.router.columns import BACKGROUND, Columns
from asr.router.decision import BASE_ROUTE, Decision, DecisionBatch, decide_scores
from asr.router.features import FeatureMap
from asr.router.gaussian import DomainGaussians, Float32Array
from asr.router.held_out import calibrate
from asr.router.known import KnownScore
from asr.router.neighbours import Neighbours
from asr.router.numerics import Float64Array
from asr.router.report import RouterReport, fit_warnings
from asr.router.ridge import DEFAULT_RIDGE, choose_ridge
from asr.router.scoring import Scorer
from asr.router.settings import RouterSettings
from asr.router.statistics import DomainStatistics
from asr.router.systems import Solution, solve_recursively, solve_summed, sum_statistics

#: The background weighs as much as this many average domains. As one of several hundred prompts it
#: would pull the regression away from small domains (dev, forced: .956 at its own size, .969 here).
BACKGROUND_SIZE = 0.5


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
        scorer: pooled states to scores.
        known: scores to one score and the probability that the request is of some domain.
        settings: what it was fitted with.
        report: what the fit found.
    """

    scorer: Scorer
    known: KnownScore
    settings: RouterSettings
    report: RouterReport

    @property
    def columns(self) -> Columns:
        """Which column of W belongs to which domain."""
        return self.scorer.columns

    @property
    def weights(self) -> Float64Array:
        """W (E, C) float64."""
        return self.scorer.weights

    @property
    def feature_map(self) -> FeatureMap:
        """Pooled states to features."""
        return self.scorer.feature_map

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
            gram, targets = sum_statistics(statistics, _weights(kept, settings))
            ridge = settings.ridge
            if ridge is None and len(columns.names) > 1 and blocks:
                choice = choose_ridge(gram, targets, columns, blocks, feature_map)
                ridge, chosen, table = choice.ridge, choice.ridge, choice.table
            solution = solve_summed(gram, targets, DEFAULT_RIDGE if ridge is None else ridge)
        scorer = _scorer(kept, columns, solution.weights, feature_map, settings)
        known, found = calibrate(
            scorer, blocks, _blocks(kept, "background"), settings.abstain, columns.has_background
        )
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
            accuracy=found.accuracy,
            domain_accuracy=found.domain_accuracy,
            thresholds=found.thresholds,
            threshold=found.threshold,
            rejected=found.rejected,
            background_rejected=found.background_rejected,
            temperature=found.temperature,
            warnings=fit_warnings(
                columns.names,
                columns.has_background,
                settings.abstain,
                calibration_prompts,
                found,
                chosen,
            ),
            curve=found.curve,
            confusions=found.confusions,
        )
        return cls(scorer, known, settings, report)

    def scores(self, pooled: ArrayLike) -> Float64Array:
        """Return (m, K) scores of pooled states (m, d), columns in the order of ``names``.

        Raises:
            RouterError: another hidden size, or an entry that is not finite.
        """
        return self.scorer(_rows(pooled)).domains

    def decide_batch(self, pooled: ArrayLike) -> DecisionBatch:
        """Decide on m requests at once, as arrays.

        Args:
            pooled: (m, d), any real dtype.

        Raises:
            RouterError: another hidden size, or an entry that is not finite.
        """
        return decide_scores(
            self.names,
            self.scorer(_rows(pooled)),
            self.known,
            self.report.threshold,
            self.report.temperature,
        )

    def decide(self, pooled: ArrayLike) -> list[Decision]:
        """Decide on m requests (m, d); see :meth:`decide_batch`."""
        return self.decide_batch(pooled).decisions()


def _weights(kept: Sequence[RoutingDomain], settings: RouterSettings) -> dict[str, float]:
    """Factors on statistics by name: the settings', and what sizes the background classes."""
    counts = {domain.name: domain.statistics.prompts for domain in kept}
    routed = [domain.name for domain in kept if domain.statistics.kind == "domain"]
    others = [name for name in counts if name not in routed]
    size = BACKGROUND_SIZE * float(np.mean([counts[name] for name in routed]))
    sized = {name: size / sum(counts[other] for other in others) for name in others}
    return {**sized, **(settings.domain_weights or {})}


def _rows(pooled: ArrayLike) -> np.ndarray:
    states = np.asarray(pooled)
    if states.ndim != 2:
        raise RouterError(
            f"pooled features have shape {states.shape}; give one row per request, (m, d)"
        )
    return states


def _scorer(
    kept: Sequence[RoutingDomain],
    columns: Columns,
    weights: Float64Array,
    feature_map: FeatureMap,
    settings: RouterSettings,
) -> Scorer:
    """W with what the terms of the settings need: Gaussians of the domains, and neighbours."""
    plain = Scorer(feature_map, columns, weights)
    if settings.terms == ("evidence",):
        return plain
    gaussians = DomainGaussians.fit(_unexpanded(kept, feature_map))
    if gaussians is None or "closeness" not in settings.terms:
        return replace(plain, gaussians=gaussians)
    whitened: dict[int, list[Float32Array]] = {}
    for domain in kept:
        block = domain.calibration
        if block is not None and block.prompts:
            routed = domain.statistics.kind == "domain"
            owner = columns.names.index(domain.name) if routed else BACKGROUND
            states = feature_map.normalise(block.pooled)
            whitened.setdefault(owner, []).append(gaussians.whiten(states))
    neighbours = Neighbours.fit(
        {owner: np.concatenate(parts) for owner, parts in whitened.items()}, settings.neighbours
    )
    return replace(plain, gaussians=gaussians, neighbours=neighbours)


def _unexpanded(kept: Sequence[RoutingDomain], feature_map: FeatureMap) -> list[DomainStatistics]:
    """Statistics of the domains without expansion.

    Those that are kept, or, where they are of expanded features, those of the calibration blocks.
    """
    domains = [domain for domain in kept if domain.statistics.kind == "domain"]
    if feature_map.expansion == 0:
        return [domain.statistics for domain in domains]
    flat = FeatureMap(feature_map.hidden_size)
    return [
        DomainStatistics(flat.dimension).update(flat(domain.calibration.pooled))
        for domain in domains
        if domain.calibration is not None and domain.calibration.prompts
    ]


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
