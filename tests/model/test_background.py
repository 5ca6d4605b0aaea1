"""The background class: sampled from the base, stored with the model, part of every solve."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from asr.base.split import SplitForward
from asr.errors import ContractError, RouterError
from asr.model.background import NAME, fit_background, read_background, store_background
from asr.model.background_prompts import own_messages
from asr.model.contract import FeatureContract, Truncation
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.routing import feature_map
from asr.router import (
    BASE_ROUTE,
    CalibrationBlock,
    DomainStatistics,
    Router,
    RouterSettings,
    RoutingDomain,
)
from tests.routed import tiny_base


@pytest.fixture(scope="module")
def base():
    return tiny_base()[1]


@pytest.fixture
def contract(base):
    return FeatureContract(
        base_fingerprint=base.fingerprint,
        layer=2,
        template_hash=base.template.hash,
        truncation=Truncation(max_length=64),
        views=("templated", "framed"),
    )


def test_it_is_stored_beside_the_domains_and_read_back(base, contract, tmp_path):
    directory = ModelDirectory(tmp_path)
    directory.router_folder.mkdir()
    ledger = SimpleNamespace(contract=contract, background=None)
    assert read_background(directory, ledger) == []
    made = fit_background(base, SplitForward(base.model, 2), contract, 24)
    assert made.statistics.kind == "background"
    store_background(directory, made, contract)
    ledger.background = SimpleNamespace(sha256=file_sha256(directory.background))
    (read,) = read_background(directory, ledger)
    assert read.name == NAME
    assert read.statistics.kind == "background"
    np.testing.assert_array_equal(read.statistics.gram(), made.statistics.gram())
    np.testing.assert_array_equal(read.calibration.pooled, made.calibration.pooled)
    ledger.contract = contract.model_copy(update={"layer": 1})
    with pytest.raises(ContractError, match="layer is 1 in this model and 2 there"):
        read_background(directory, ledger)


def test_a_background_that_is_gone_or_changed_is_never_left_out(base, contract, tmp_path):
    directory = ModelDirectory(tmp_path)
    directory.router_folder.mkdir()
    recorded = SimpleNamespace(sha256="0" * 64)
    ledger = SimpleNamespace(contract=contract, background=recorded)
    again = f"run asr train CONFIG --out {tmp_path} --resume to make it again"
    with pytest.raises(RouterError) as caught:
        read_background(directory, ledger)
    assert str(caught.value) == f"{directory.background} is missing; {again}"
    directory.background.write_bytes(b"else")
    with pytest.raises(RouterError) as caught:
        read_background(directory, ledger)
    found = file_sha256(directory.background)[:12]
    assert str(caught.value) == (
        f"{directory.background} was changed (sha256 {found}..., recorded 000000000000...); {again}"
    )


def test_a_request_is_known_by_how_far_it_stands_above_the_background(base, contract):
    """Two synthetic domains and the background: its column enters the score, it is never routed."""
    background = fit_background(base, SplitForward(base.model, 2), contract, 24)
    mapped = feature_map(contract, base.hidden_size)
    generator = np.random.Generator(np.random.PCG64(0))

    def domain(name, centre):
        pooled = centre + 0.1 * generator.normal(size=(30, 2, base.hidden_size))
        features = mapped(pooled.reshape(60, -1)).reshape(30, 2, -1)
        return RoutingDomain(
            name,
            DomainStatistics(mapped.dimension).update(features),
            CalibrationBlock(pooled[:20].astype(np.float32), contract.views),
        )

    centres = generator.normal(size=(2, base.hidden_size))
    domains = [domain("one", centres[0]), domain("two", centres[1])]
    router = Router.fit([*domains, background], RouterSettings(abstain=0.05), mapped)
    assert router.names == ("one", "two")
    known = router.decide(centres.astype(np.float32))
    assert [decision.route for decision in known] == ["one", "two"]
    others = router.decide_batch(background.calibration.pooled[:, 0])
    without = Router.fit(domains, RouterSettings(abstain=0.05), mapped)
    assert others.abstained.mean() > 0.9
    assert {d.route for d in others.decisions() if d.abstained} == {BASE_ROUTE}
    assert NAME not in without.decide_batch(background.calibration.pooled[:, 0]).names


def test_a_base_that_writes_nothing_leaves_our_messages(base, contract, monkeypatch):
    monkeypatch.setattr("asr.model.background.sampled_prompts", lambda *args: [])
    made = fit_background(base, SplitForward(base.model, 2), contract, 8)
    assert made.statistics.prompts + made.calibration.prompts == len(own_messages())
