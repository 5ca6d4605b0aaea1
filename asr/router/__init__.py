"""Analytic routing on pooled features: statistics, solve, calibration, abstaining, storage.

Linear algebra on arrays; knows nothing of language models. The way through it:

1. :class:`FeatureMap` turns pooled hidden states (n, V, d) into features (n, V, E);
2. :class:`DomainStatistics` sums them up, prompt by prompt; a :class:`CalibrationBlock` keeps the
   pooled states of prompts held out from that;
3. :meth:`Router.fit` solves one ridge regression over the sums of all domains and calibrates it;
4. :meth:`Router.decide` sends a request to a domain, or to the base;
5. :func:`save_domain` and :func:`save_router` put both on disk.

:class:`AnalyticRouter` is the regression alone, as an estimator on plain arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asr.router.calibration import (
    CalibrationBlock,
    conformal_threshold,
    fit_temperature,
    view_thresholds,
)
from asr.router.columns import Columns
from asr.router.decision import BASE_ROUTE, Decision, DecisionBatch
from asr.router.features import DEFAULT_SEED, FeatureMap
from asr.router.recursive import RecursiveLeastSquares, views_as_rows
from asr.router.report import RouterReport
from asr.router.ridge import DEFAULT_RIDGE, RIDGE_GRID, RidgeChoice, RidgeRow, choose_ridge
from asr.router.router import Router, RoutingDomain
from asr.router.settings import DEFAULT_ABSOLUTE_RIDGE, SOLVERS, RouterSettings
from asr.router.solve import absolute_ridge, backward_error, condition_number, solve_ridge
from asr.router.statistics import DomainStatistics
from asr.router.storage import (
    StoredDomain,
    StoredRouter,
    load_domain,
    load_router,
    save_domain,
    save_router,
)

if TYPE_CHECKING:
    from asr.router.analytic import AnalyticRouter

__all__ = [
    "BASE_ROUTE",
    "DEFAULT_ABSOLUTE_RIDGE",
    "DEFAULT_RIDGE",
    "DEFAULT_SEED",
    "RIDGE_GRID",
    "SOLVERS",
    "AnalyticRouter",
    "CalibrationBlock",
    "Columns",
    "Decision",
    "DecisionBatch",
    "DomainStatistics",
    "FeatureMap",
    "RecursiveLeastSquares",
    "RidgeChoice",
    "RidgeRow",
    "Router",
    "RouterReport",
    "RouterSettings",
    "RoutingDomain",
    "StoredDomain",
    "StoredRouter",
    "absolute_ridge",
    "backward_error",
    "choose_ridge",
    "condition_number",
    "conformal_threshold",
    "fit_temperature",
    "load_domain",
    "load_router",
    "save_domain",
    "save_router",
    "solve_ridge",
    "view_thresholds",
    "views_as_rows",
]


def __getattr__(name: str) -> Any:
    # The estimator derives from scikit-learn's where that is installed, which is slow to import.
    if name == "AnalyticRouter":
        from asr.router.analytic import AnalyticRouter

        return AnalyticRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
