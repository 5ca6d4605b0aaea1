"""Files of the router under a contract: another one is refused by the name of the field."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asr.errors import ContractError
from asr.model.contract import Expansion, FeatureContract, Truncation
from asr.model.stored import contract_metadata, read_domain, read_router, unrouted
from asr.router import (
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
    save_domain,
    save_router,
)

WIDTH = 6
CONTRACT = FeatureContract(
    base_fingerprint="a" * 64,
    layer=2,
    template_hash="b" * 64,
    truncation=Truncation(max_length=64),
    views=("templated", "bare"),
)
CHANGES: list[tuple[str, Any, str]] = [
    ("base_fingerprint", "c" * 64, "base_fingerprint is aaaaaaaaaaaa... in this model and cccccc"),
    ("layer", 3, "layer is 2 in this model and 3 there; the router layer is fixed"),
    ("expansion", Expansion(dimension=9), "expansion.dimension is 0 in this model and 9 there"),
    ("template_hash", "d" * 64, "template_hash is bbbbbbbbbbbb... in this model and dddddd"),
    ("truncation", Truncation(max_length=65), "truncation.max_length is 64 in this model and 65"),
    ("views", ("templated",), "views is [templated, bare] in this model and [templated] there"),
]


def domain() -> RoutingDomain:
    """A domain of a few prompts in two views."""
    pooled = np.random.Generator(np.random.PCG64(0)).normal(size=(8, 2, WIDTH))
    statistics = DomainStatistics(WIDTH + 1).update(FeatureMap(WIDTH)(pooled))
    return RoutingDomain("red", statistics, CalibrationBlock(pooled, CONTRACT.views))


@pytest.mark.parametrize(("field", "value", "message"), CHANGES)
def test_the_field_that_differs_is_named(tmp_path, field, value, message):
    other = CONTRACT.model_copy(update={field: value})
    made = domain()
    red, derived = tmp_path / "red.safetensors", tmp_path / "router.safetensors"
    carried = contract_metadata(other)
    save_domain(red, "red", made.statistics, made.calibration, other.hash, carried)
    router = Router.fit([made], RouterSettings(), FeatureMap(WIDTH))
    save_router(derived, router, other.hash, metadata=carried)
    assert read_domain(red, other).name == "red"
    assert read_router(derived, other).router.names == ("red",)
    for read, path in ((read_domain, red), (read_router, derived)):
        with pytest.raises(ContractError) as caught:
            read(path, CONTRACT)
        begins = f"{path}: features made under another contract: {message}"
        assert str(caught.value).startswith(begins)


def test_a_file_that_does_not_carry_its_contract_is_refused_by_hash(tmp_path):
    made = domain()
    path = tmp_path / "red.safetensors"
    save_domain(path, "red", made.statistics, made.calibration, "e" * 64)
    with pytest.raises(ContractError, match="was made under feature contract eeeeeeeeeeee, this"):
        read_domain(path, CONTRACT)


def test_finished_domains_that_the_router_lacks(tmp_path):
    ledger: Any = SimpleNamespace(finished=["red", "sum"])
    assert unrouted(ledger, ["red", "sum", "rev"]) == []
    [problem] = unrouted(ledger, ["red"])
    assert problem.startswith("the router does not know 'sum' and sends nothing there, though it")
