from __future__ import annotations

import json
import re
from typing import Any

import pytest

from asr.errors import RouterError
from asr.router import DEFAULT_ABSOLUTE_RIDGE, RouterSettings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "rsl"}, "unknown router solver 'rsl' (did you mean 'rls'?); there are: direct,"
         " rls"),
        ({"ridge": -1e-3}, "router.ridge is -0.001; it must be above 0, or left out for the"
         " default"),
        ({"ridge": 0.0}, "router.ridge is 0.0; it must be above 0, or left out for the default"),
        ({"ridge": "big"}, "router.ridge is 'big'; it must be a finite number"),
        ({"ridge": float("nan")}, "router.ridge is nan; it must be a finite number"),
        ({"ridge": True}, "router.ridge is True; it must be a finite number"),
        ({"solver": "rls", "absolute_ridge": -1}, "router.absolute_ridge is -1; it must be above"
         " 0, or left out for the default"),
        ({"expansion": -1}, "router.expansion is -1; it must be an integer, 0 or more"),
        ({"expansion": 2.5}, "router.expansion is 2.5; it must be an integer, 0 or more"),
        ({"expansion_seed": -1}, "router.expansion_seed is -1; it must be an integer, 0 or more"),
        ({"abstain": 0.6}, "router.abstain is 0.6; it is a share of known prompts in 0 ... 0.5"
         " (0 never abstains, 0.07 is the default)"),
        ({"terms": ("evidence", "typical")}, "unknown term in router.terms 'typical' (did you mean"
         " 'typicality'?); there are: closeness, evidence, typicality"),
        ({"terms": ("evidence", "closeness")}, "router.terms is [evidence, closeness]; it is"
         " [evidence], [evidence, typicality] or [evidence, typicality, closeness]"),
        ({"neighbours": 0}, "router.neighbours is 0; it must be 1 or more (leave 'closeness' out of"
         " router.terms to do without)"),
        ({"neighbours": 1.5}, "router.neighbours is 1.5; it must be an integer"),
        ({"abstain": -0.1}, "router.abstain is -0.1; it is a share of known prompts in 0 ... 0.5"
         " (0 never abstains, 0.07 is the default)"),
        ({"domain_weights": {"law": 0}}, "router.domain_weights['law'] is 0; it must be above 0"
         " (to leave a domain out, remove it)"),
        ({"domain_weights": {"law": None}}, "router.domain_weights['law'] is None; it must be a"
         " finite number"),
        ({"absolute_ridge": 1.0}, "router.absolute_ridge belongs to solver 'rls'; for solver"
         " 'direct' set router.ridge, which is relative to trace/E"),
        ({"solver": "rls", "ridge": 0.1}, "solver 'rls' cannot follow router.ridge, which is"
         " relative and moves with every domain; set router.absolute_ridge, or router.solver:"
         " direct"),
        ({"solver": "rls", "domain_weights": {"law": 2.0}}, "solver 'rls' cannot follow"
         " router.domain_weights (unit weights only); leave them out, or set router.solver:"
         " direct"),
    ],
)  # fmt: skip
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        RouterSettings(**fields)


def test_defaults() -> None:
    settings = RouterSettings()
    assert (settings.solver, settings.ridge, settings.expansion) == ("direct", None, 0)
    assert settings.abstain == 0.07
    assert settings.terms == ("evidence", "typicality", "closeness")
    assert RouterSettings(solver="rls").rls_ridge == DEFAULT_ABSOLUTE_RIDGE == 1.0
    assert RouterSettings(solver="rls", absolute_ridge=3.0).rls_ridge == 3.0


@pytest.mark.parametrize(
    "settings",
    [
        RouterSettings(),
        RouterSettings(ridge=1e-3, abstain=0, domain_weights={"b": 2, "a": 0.5}),
        RouterSettings(solver="rls", absolute_ridge=10.0, expansion=64, expansion_seed=5),
        RouterSettings(terms=("evidence", "typicality"), neighbours=3),
    ],
)
def test_dict_round_trip(settings: RouterSettings) -> None:
    assert RouterSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_weights_are_copied_and_ordered() -> None:
    weights = {"b": 2.0, "a": 1.0}
    settings = RouterSettings(domain_weights=weights)
    weights["b"] = 9.0
    assert settings.domain_weights is not None
    assert list(settings.domain_weights.items()) == [("a", 1.0), ("b", 2.0)]


def test_unknown_field() -> None:
    with pytest.raises(
        RouterError, match=r"^unknown router setting 'rigde' \(did you mean 'ridge'"
    ):
        RouterSettings.from_dict({"rigde": 1.0})
    with pytest.raises(RouterError, match=r"^router.domain_weights is \[1\]; it must map"):
        RouterSettings.from_dict({"domain_weights": [1]})
