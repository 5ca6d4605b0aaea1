"""The score of a domain and the terms of the known score, put together by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asr.router import FeatureMap, Router, RouterSettings, RoutingDomain
from asr.router import scoring as module
from asr.router.columns import BACKGROUND
from asr.router.neighbours import unit_rows
from tests.router.conftest import MakeDomain, pooled_states

HIDDEN = 24


@pytest.fixture(scope="module")
def fitted(make_domain: MakeDomain) -> Router:
    mapped = FeatureMap(HIDDEN)
    made = [make_domain(name, seed, mapped, separation=0.7) for seed, name in enumerate("abc")]
    made.append(make_domain("world", 7, mapped, kind="background", prompts=60))
    return Router.fit(made, RouterSettings(), mapped)


def test_scores_are_ridge_and_neighbours(fitted: Router) -> None:
    probes = pooled_states(1000, 20, HIDDEN)[:, 0]
    scorer = fitted.scorer
    assert scorer.gaussians is not None
    assert scorer.neighbours is not None
    states = scorer.feature_map.normalise(probes)
    raw = scorer.feature_map(probes) @ fitted.weights
    units = unit_rows(scorer.gaussians.whiten(states))
    near = np.stack([scorer.neighbours.similarity(units, owner) for owner in range(3)], axis=1)
    found = scorer(probes)
    np.testing.assert_allclose(found.domains, raw[:, :3] + module.NEIGHBOUR_WEIGHT * near)
    world = scorer.neighbours.similarity(units, BACKGROUND)
    np.testing.assert_allclose(found.terms["closeness"], near.max(axis=1) - world)
    np.testing.assert_allclose(found.terms["evidence"], raw[:, :3].max(axis=1) - raw[:, 3])
    score = sum(found.terms[name] / fitted.known.scales[name] for name in module.TERMS)
    batch = fitted.decide_batch(probes)
    np.testing.assert_allclose(batch.score, score)
    np.testing.assert_array_equal(batch.abstained, score < fitted.threshold)


def test_terms_can_be_left_out(make_domain: MakeDomain) -> None:
    mapped = FeatureMap(HIDDEN)
    made = [make_domain(name, seed, mapped) for seed, name in enumerate("ab")]
    for count in (1, 2, 3):
        router = Router.fit(made, RouterSettings(terms=module.TERMS[:count]), mapped)
        assert tuple(router.known.scales) == module.TERMS[:count]
        assert set(router.decide(np.ones((1, HIDDEN)) * np.arange(HIDDEN))[0].terms) == set(
            module.TERMS[:count]
        )


def test_candidates_decide_as_all_do(
    make_domain: MakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many domains only the first few of the ridge are compared; the best is the same."""
    mapped = FeatureMap(HIDDEN)
    made = [make_domain(f"d{seed:02}", seed, mapped, separation=1.0) for seed in range(14)]
    router = Router.fit(made, RouterSettings(), mapped)
    probes = np.concatenate([pooled_states(1000 + seed, 10, HIDDEN)[:, 0] for seed in range(14)])
    some = router.scorer(probes)
    monkeypatch.setattr(module, "CANDIDATES", 14)
    everyone = router.scorer(probes)
    assert np.mean(some.domains.argmax(axis=1) == everyone.domains.argmax(axis=1)) >= 0.99
    ridge = mapped(probes) @ router.weights
    first = np.argsort(ridge, axis=1)[:, -8:]
    rows = np.arange(len(probes))[:, None]
    np.testing.assert_allclose(some.domains[rows, first], everyone.domains[rows, first], atol=1e-6)


def test_one_prompt_for_each_domain_still_routes() -> None:
    """No spread within the domains: the regression alone, as before."""
    from asr.router import DomainStatistics

    mapped = FeatureMap(HIDDEN)
    made = [
        RoutingDomain(
            name,
            DomainStatistics(HIDDEN + 1).update(mapped(pooled_states(seed, 1, HIDDEN, views=1))),
        )
        for seed, name in enumerate("ab")
    ]
    router = Router.fit(made, RouterSettings(), mapped)
    assert router.scorer.gaussians is None
    assert [d.domain for d in router.decide(pooled_states(0, 1, HIDDEN, views=1)[0])] == ["a"]


def test_expansion_takes_the_covariance_of_held_out_prompts(make_domain: MakeDomain) -> None:
    wide = FeatureMap(HIDDEN, expansion=64)
    made = [make_domain(name, seed, wide) for seed, name in enumerate("ab")]
    router = Router.fit(made, RouterSettings(expansion=64), wide)
    assert router.scorer.gaussians is not None
    assert router.scorer.gaussians.within.shape == (HIDDEN, HIDDEN)
    no_blocks = [replace(domain, calibration=None) for domain in made]
    assert Router.fit(no_blocks, RouterSettings(expansion=64), wide).scorer.gaussians is None
