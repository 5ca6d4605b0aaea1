from __future__ import annotations

import math
import re
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import RouterError
from asr.router import (
    RIDGE_GRID,
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
    absolute_ridge,
    condition_number,
    save_router,
    solve_ridge,
)
from asr.router.report import RouterReport
from asr.router.ridge import DEFAULT_RIDGE
from tests.router.conftest import VIEWS, MakeDomain, pooled_states

HIDDEN = 24


@pytest.fixture(scope="module")
def feature_map() -> FeatureMap:
    return FeatureMap(HIDDEN)


@pytest.fixture(scope="module")
def domains(make_domain: MakeDomain, feature_map: FeatureMap) -> list[RoutingDomain]:
    """Four domains, of which one is small enough to keep its factor."""
    sizes = {"law": 40, "code": 60, "med": 8, "arc": 30}
    return [
        make_domain(name, seed, feature_map, prompts=prompts, separation=0.5)
        for seed, (name, prompts) in enumerate(sizes.items())
    ]


def content(router: Router) -> bytes:
    """Everything a router is, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        save_router(Path(folder) / "router", router, "contract")
        return (Path(folder) / "router").read_bytes()


def test_order_does_not_matter(domains: list[RoutingDomain], feature_map: FeatureMap) -> None:
    contents = {
        content(Router.fit(order, RouterSettings(), feature_map)) for order in permutations(domains)
    }
    assert len(contents) == 1


@pytest.mark.parametrize("solver", ["direct", "rls"])
@given(kept=st.sets(st.integers(0, 3), min_size=1), order=st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_removal_is_as_if_never_seen(
    solver: str,
    kept: set[int],
    order: object,
    domains: list[RoutingDomain],
    feature_map: FeatureMap,
) -> None:
    choice = RouterSettings(solver=solver)
    Router.fit(domains, choice, feature_map)  # with the domains that are removed next
    remaining = [domains[index] for index in kept]
    order.shuffle(remaining)  # type: ignore[attr-defined]
    removed = Router.fit(remaining, choice, feature_map)
    fresh_map = FeatureMap(HIDDEN)
    rebuilt = [
        RoutingDomain(
            domain.name,
            DomainStatistics.from_tensors(*domain.statistics.to_tensors()),
            domain.calibration,
        )
        for domain in sorted(remaining, key=lambda domain: domain.name)
    ]
    assert content(removed) == content(Router.fit(rebuilt, choice, fresh_map))


def stacked(domains: list[RoutingDomain]) -> tuple[np.ndarray, np.ndarray]:
    """The sums over domains in name order, by the definition."""
    ordered = sorted(domains, key=lambda domain: domain.name)
    gram = np.sum([domain.statistics.gram() for domain in ordered], axis=0)
    return gram, np.stack([domain.statistics.feature_sums[0] for domain in ordered], axis=1)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_equals_one_ridge_regression(
    ridge: float, domains: list[RoutingDomain], feature_map: FeatureMap
) -> None:
    """Against a float64 solve over the rows of all prompts, stacked in another order."""
    router = Router.fit(domains, RouterSettings(ridge=ridge), feature_map)
    rows, targets = [], []
    for column, name in enumerate(router.names):
        seed = [domain.name for domain in domains].index(name)
        prompts = domains[seed].statistics.prompts
        views = feature_map(pooled_states(seed, prompts, HIDDEN, separation=0.5))
        rows.append(views.reshape(-1, HIDDEN + 1) / math.sqrt(2))
        targets.append(np.tile(np.eye(4)[column] / math.sqrt(2), (2 * prompts, 1)))
    features, labels = np.concatenate(rows[::-1]), np.concatenate(targets[::-1])
    gram = features.T @ features
    shift = ridge * np.trace(gram) / len(gram)
    expected = np.linalg.solve(gram + shift * np.eye(len(gram)), features.T @ labels)
    assert condition_number(gram, shift) <= 1e7
    assert np.linalg.norm(router.weights - expected) <= 1e-9 * np.linalg.norm(expected)
    assert router.report.backward_error <= 1e-14
    assert router.report.absolute_ridge == pytest.approx(shift)


def test_ill_conditioned_expansion_keeps_decisions(make_domain: MakeDomain) -> None:
    """Far more features than rows: the weights may differ, decisions and backward error not."""
    wide = FeatureMap(HIDDEN, expansion=300)
    made = [make_domain(name, seed, wide, prompts=30) for seed, name in enumerate("abc")]
    alone = RouterSettings(ridge=1e-10, expansion=300, terms=("evidence",))
    router = Router.fit(made, alone, wide)
    gram, targets = stacked(made)
    assert router.report.condition > 1e8
    assert router.report.backward_error <= 1e-14
    shift = absolute_ridge(gram, 1e-10)
    other = np.linalg.solve(gram + shift * np.eye(300), targets)
    probes = pooled_states(1, 200, HIDDEN)[:, 0]
    np.testing.assert_array_equal(
        router.decide_batch(probes).indices, (wide(probes) @ other).argmax(axis=1)
    )


def test_rls_equals_direct_absolute_ridge(
    domains: list[RoutingDomain], feature_map: FeatureMap
) -> None:
    router = Router.fit(domains, RouterSettings(solver="rls", absolute_ridge=2.0), feature_map)
    gram, targets = stacked(domains)
    expected = solve_ridge(2 * gram, 2 * targets, 2.0)  # two views: each a row of weight 1
    assert np.linalg.norm(router.weights - expected) <= 1e-9 * np.linalg.norm(expected)
    report = router.report
    assert (report.solver, report.ridge_chosen, report.ridge_table) == ("rls", False, ())
    assert report.backward_error <= 1e-14
    assert report.condition == pytest.approx(np.linalg.cond(2 * gram + 2 * np.eye(25), 1), rel=1e-6)
    assert absolute_ridge(2 * gram, report.ridge) == pytest.approx(2.0)
    # the same ridge, said in the direct solver's relative way
    same = Router.fit(domains, RouterSettings(ridge=report.ridge), feature_map)
    np.testing.assert_allclose(same.weights, router.weights, rtol=1e-8, atol=1e-10)


def test_rls_refuses_unequal_views(make_domain: MakeDomain, feature_map: FeatureMap) -> None:
    made = [make_domain("a", 0, feature_map), make_domain("b", 1, feature_map, views=1)]
    message = (
        "solver 'rls' counts every view as one row and needs the same number of views in every"
        " domain (there are: a 2, b 1); set router.solver: direct"
    )
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        Router.fit(made, RouterSettings(solver="rls"), feature_map)
    assert Router.fit(made, RouterSettings(), feature_map).names == ("a", "b")


def test_routes_and_thresholds(domains: list[RoutingDomain], feature_map: FeatureMap) -> None:
    router = Router.fit(domains, RouterSettings(abstain=0.1), feature_map)
    report = router.report
    assert router.names == ("arc", "code", "law", "med")
    assert set(report.accuracy) == set(VIEWS)
    assert min(report.accuracy.values()) > 0.5
    assert report.threshold == min(report.thresholds.values()) == router.threshold
    assert max(report.rejected.values()) <= 0.1
    assert max(report.rejected.values()) > 0.05  # the worst kind uses what it is allowed
    fresh = pooled_states(5000, 200, HIDDEN, separation=0.5)[:, 0]  # seed 0's centre: law
    decisions = router.decide(fresh)
    scores = router.scores(fresh)
    assert np.mean([decision.domain == "law" for decision in decisions]) > 0.7
    for row, decision in enumerate(decisions[:20]):
        assert decision.abstained == (decision.score < router.threshold)
        assert decision.route == ("base" if decision.abstained else decision.domain)
        assert list(decision.scores) == list(router.names)
        np.testing.assert_array_equal(list(decision.scores.values()), scores[row])
        first, second = sorted(scores[row])[::-1][:2]
        assert decision.margin == pytest.approx(first - second)
        # without a background there is nothing to tell strangers from: P(known) is 1
        assert (decision.probability == 0.0) if decision.abstained else decision.probability >= 0.25


def test_abstain_zero_never_abstains(domains: list[RoutingDomain], feature_map: FeatureMap) -> None:
    router = Router.fit(domains, RouterSettings(abstain=0.0), feature_map)
    assert router.threshold == -math.inf
    far = np.random.default_rng(0).standard_normal((50, HIDDEN)) * 100
    assert not router.decide_batch(far).abstained.any()
    assert not any("never abstains" in line for line in router.report.warnings)


def test_too_few_prompts_to_abstain(make_domain: MakeDomain, feature_map: FeatureMap) -> None:
    made = [make_domain(name, seed, feature_map, held_out=10) for seed, name in enumerate("ab")]
    router = Router.fit(made, RouterSettings(abstain=0.01), feature_map)
    assert router.threshold == -math.inf
    assert router.report.warnings[0] == (
        "too few held-out prompts to reject 0.01 of the known ones: 99 of each view are needed,"
        " there are bare (20), templated (20); the router never abstains"
    )


def test_ridge_is_chosen_and_the_table_kept(
    domains: list[RoutingDomain], feature_map: FeatureMap
) -> None:
    report = Router.fit(domains, RouterSettings(), feature_map).report
    assert report.ridge_chosen
    assert tuple(row.ridge for row in report.ridge_table) == RIDGE_GRID
    chosen = {row.ridge: row for row in report.ridge_table}[report.ridge]
    worst = [min(row.accuracy.values()) for row in report.ridge_table]
    assert min(chosen.accuracy.values()) >= max(worst) - 0.05
    assert chosen.loss is not None
    alone = Router.fit(domains, RouterSettings(terms=("evidence",)), feature_map).report
    assert (alone.ridge, alone.temperature) == (report.ridge, chosen.temperature)
    assert chosen.accuracy == alone.accuracy
    fixed = Router.fit(domains, RouterSettings(ridge=report.ridge), feature_map)
    assert not fixed.report.ridge_chosen
    assert fixed.report.thresholds == report.thresholds


def test_single_domain(make_domain: MakeDomain, feature_map: FeatureMap) -> None:
    settings = RouterSettings(abstain=0.02)
    router = Router.fit([make_domain("law", 0, feature_map)], settings, feature_map)
    assert (router.report.ridge, router.temperature) == (DEFAULT_RIDGE, 1.0)
    decision = router.decide(np.random.default_rng(0).standard_normal((1, HIDDEN)))[0]
    assert (decision.domain, decision.margin, decision.probability) == ("law", None, 1.0)
    assert router.report.warnings == (
        "'law' is the only domain: its score was fitted to be 1 without a counter-example, so it"
        " tells known from unknown poorly and nearly every request goes to 'law'; add a second"
        " domain or a background class",
    )
    # What other domains' prompts have in common with it is enough for a high score.
    common = pooled_states(0, 200, HIDDEN)[:, 0] + pooled_states(1, 200, HIDDEN)[:, 0]
    assert np.median(router.scores(common)) > 0.6


def test_background_is_subtracted_and_never_a_route(
    make_domain: MakeDomain, feature_map: FeatureMap
) -> None:
    made = [make_domain(name, seed, feature_map) for seed, name in enumerate("ab")]
    unknown = make_domain("world", 7, feature_map, kind="background", prompts=80)
    settings = RouterSettings(abstain=0.02)
    plain = Router.fit(made, settings, feature_map)
    router = Router.fit([unknown, *made], settings, feature_map)
    assert router.names == ("a", "b")
    assert router.weights.shape == (HIDDEN + 1, 3)
    probes = pooled_states(7007, 200, HIDDEN)[:, 0]  # new prompts of the background's kind
    batch = router.decide_batch(probes)
    assert batch.abstained.mean() > 0.95 > plain.decide_batch(probes).abstained.mean()
    decision = batch.decision(0)
    assert decision.route == "base"
    assert decision.score < max(decision.scores.values())
    assert router.report.background_rejected["world"]["templated"] > 0.95
    assert router.report.prompts == {"a": 40, "b": 40, "world": 80}
    assert set(router.report.domain_accuracy) == {"a", "b"}
    alone = Router.fit([unknown, made[0]], settings, feature_map)
    assert not alone.report.warnings  # one domain, but something to tell it from


def test_prototypes_score_by_the_largest(feature_map: FeatureMap) -> None:
    """A domain of two clouds, with another domain between them: one column cannot do it."""
    generator = np.random.default_rng(0)
    direction = generator.standard_normal(HIDDEN) * 3
    other = generator.standard_normal(HIDDEN) * 3

    def cloud(centre: np.ndarray, count: int) -> np.ndarray:
        return centre + generator.standard_normal((count, 1, HIDDEN)) * 0.5

    split = DomainStatistics(HIDDEN + 1, prototypes=3)
    split.update(feature_map(cloud(direction, 30)), 0).update(feature_map(cloud(-direction, 30)), 2)
    middle = DomainStatistics(HIDDEN + 1).update(feature_map(cloud(other, 30)))
    router = Router.fit(
        [RoutingDomain("split", split), RoutingDomain("middle", middle)],
        RouterSettings(),
        feature_map,
    )
    assert router.columns.owners == (0, 1, 1)  # the prototype without prompts has no column
    for centre, name in ((direction, "split"), (-direction, "split"), (other, "middle")):
        assert {d.route for d in router.decide(cloud(centre, 20)[:, 0])} == {name}
    assert router.report.warnings[0].startswith("no held-out prompts for middle, split: thresh")


def test_domain_weights(domains: list[RoutingDomain], feature_map: FeatureMap) -> None:
    doubled = [
        RoutingDomain(d.name, d.statistics + d.statistics if d.name == "med" else d.statistics)
        for d in domains
    ]
    weighted = Router.fit(
        domains, RouterSettings(ridge=1e-2, domain_weights={"med": 2.0}), feature_map
    )
    repeated = Router.fit(doubled, RouterSettings(ridge=1e-2), feature_map)
    np.testing.assert_allclose(weighted.weights, repeated.weights, rtol=1e-10, atol=1e-12)
    ones = RouterSettings(domain_weights={"med": 1.0})
    plain = Router.fit(domains, RouterSettings(), feature_map)
    np.testing.assert_array_equal(Router.fit(domains, ones, feature_map).weights, plain.weights)


def test_merging_two_models_equals_one(make_domain: MakeDomain, feature_map: FeatureMap) -> None:
    """The prompts of a domain split over two models, then added."""
    whole = pooled_states(3, 50, HIDDEN)
    first = DomainStatistics(HIDDEN + 1).update(feature_map(whole[:20]))
    second = DomainStatistics(HIDDEN + 1).update(feature_map(whole[20:]))
    together = DomainStatistics(HIDDEN + 1).update(feature_map(whole))
    other = make_domain("b", 1, feature_map)
    fits = [
        Router.fit([RoutingDomain("a", s), other], RouterSettings(ridge=1e-3), feature_map)
        for s in (first + second, together)
    ]
    difference = np.linalg.norm(fits[0].weights - fits[1].weights)
    assert difference <= 1e-12 * np.linalg.norm(fits[1].weights)


def test_one_row_scores_like_many(domains: list[RoutingDomain], feature_map: FeatureMap) -> None:
    router = Router.fit(domains, RouterSettings(), feature_map)
    probes = pooled_states(9, 30, HIDDEN)[:, 0]
    alone = np.concatenate([router.scores(probe[None]) for probe in probes])
    np.testing.assert_allclose(
        alone, router.scores(probes), rtol=1e-5, atol=1e-6
    )  # float32 cosines
    plain = Router.fit(domains, RouterSettings(terms=("evidence",)), feature_map)
    alone = np.concatenate([plain.scores(probe[None]) for probe in probes])
    np.testing.assert_allclose(alone, plain.scores(probes), rtol=1e-12, atol=1e-14)


def test_report_round_trip(domains: list[RoutingDomain], feature_map: FeatureMap) -> None:
    for abstain in (0.02, 0.0):
        report = Router.fit(domains, RouterSettings(abstain=abstain), feature_map).report
        assert RouterReport.from_dict(report.to_dict()) == report


def test_refusals(
    make_domain: MakeDomain, domains: list[RoutingDomain], feature_map: FeatureMap
) -> None:
    def check(
        given: list[RoutingDomain], message: str, choice: RouterSettings | None = None
    ) -> None:
        with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
            Router.fit(given, choice or RouterSettings(), feature_map)

    check([], "there is no domain to route to; add one first")
    background = make_domain("world", 0, feature_map, kind="background")
    check([background], "there is no domain to route to; add one first")
    check([*domains, domains[0]], "domain 'law' is given twice; remove one of them")
    check(
        [make_domain("base", 0, feature_map)],
        "'base' is the route of requests that no domain claims; rename the domain",
    )
    check(
        [RoutingDomain("a", DomainStatistics(HIDDEN + 1))],
        "domain 'a' has no prompts; add it with data",
    )
    check(
        [RoutingDomain("a", DomainStatistics(3).update(np.ones((1, 1, 3))))],
        "domain 'a' has statistics of 3 features, the feature map makes 25; add it again with this"
        " base",
    )
    check(
        [RoutingDomain("a", domains[0].statistics, CalibrationBlock(np.ones((1, 1, 3)), ["x"]))],
        "domain 'a' has calibration features of 3, the base has 24; add it again with this base",
    )
    check(
        domains,
        "unknown domain in router.domain_weights 'laww' (did you mean 'law'?); there are: arc,"
        " code, law, med",
        RouterSettings(domain_weights={"laww": 2.0}),
    )
    check(
        domains,
        "the feature map has expansion 0, the settings 64; it cannot change once a domain has been"
        " added",
        RouterSettings(expansion=64),
    )
    router = Router.fit(domains, RouterSettings(), feature_map)
    with pytest.raises(RouterError, match=r"shape \(24,\); give one row per request, \(m, d\)"):
        router.decide(np.zeros(HIDDEN))


def test_too_small_a_ridge_names_one_that_works(make_domain: MakeDomain) -> None:
    wide = FeatureMap(HIDDEN, expansion=200)
    made = [make_domain(name, seed, wide, prompts=20) for seed, name in enumerate("ab")]
    with pytest.raises(RouterError, match="the smallest that works is 1e-1"):
        Router.fit(made, RouterSettings(ridge=1e-30, expansion=200), wide)
