"""Thresholds, the abstain curve and confusions on held-out prompts."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from asr.router import FeatureMap, Router, RouterSettings, load_router, save_router
from tests.router.conftest import MakeDomain, pooled_states

HIDDEN = 24


@pytest.fixture(scope="module")
def fitted(make_domain: MakeDomain) -> Router:
    """Two domains around the same centre, one elsewhere, and a background."""
    mapped = FeatureMap(HIDDEN)
    made = [
        make_domain("billing", 1000, mapped, held_out=120),
        make_domain("orders", 2000, mapped, held_out=120),  # seeds of one centre: 0
        make_domain("law", 5, mapped, held_out=120),
        make_domain("world", 7, mapped, kind="background", prompts=80, held_out=80),
    ]
    return Router.fit(made, RouterSettings(), mapped)


def test_confused_domains_are_named(fitted: Router) -> None:
    pairs = {(pair.domain, pair.taken_by): pair for pair in fitted.report.confusions}
    assert set(pairs) == {("billing", "orders"), ("orders", "billing")}
    for (name, other), pair in pairs.items():
        lost = 1 - np.mean(list(fitted.report.domain_accuracy[name].values()))
        assert pair.share == pytest.approx(lost, abs=0.02)
        warning = (
            f"{pair.share:.0%} of the 120 held-out prompts of '{name}' are taken by '{other}':"
            " expect confusion, or make them one domain"
        )
        assert warning in fitted.report.warnings


def test_curve_says_what_a_level_costs_and_brings(fitted: Router, make_domain: MakeDomain) -> None:
    curve = fitted.report.curve
    assert [point.abstain for point in curve] == sorted(point.abstain for point in curve)
    assert all(point.lost <= point.abstain for point in curve)
    caught = [point.caught for point in curve if point.caught is not None]
    assert len(caught) == len(curve)
    assert caught == sorted(caught)
    at_default = next(point for point in curve if point.abstain == RouterSettings().abstain)
    assert at_default.threshold == fitted.threshold
    shares = fitted.report.background_rejected["world"]
    assert at_default.caught == pytest.approx(np.mean(list(shares.values())))
    # new prompts of the same kinds: about what was said
    known = pooled_states(91_005, 400, HIDDEN)[:, 1]  # law's centre, the harder view
    assert np.mean(fitted.decide_batch(known).abstained) <= 3 * at_default.abstain
    strangers = pooled_states(91_007, 400, HIDDEN).reshape(-1, HIDDEN)
    found = np.mean(fitted.decide_batch(strangers).abstained)
    assert found == pytest.approx(at_default.caught, abs=0.1)


def test_a_threshold_that_hardly_ever_fires_is_named(make_domain: MakeDomain) -> None:
    mapped = FeatureMap(HIDDEN)
    made = [
        make_domain("law", 5, mapped, held_out=200),
        make_domain("world", 1005, mapped, kind="background", held_out=60),  # the same centre
    ]
    report = Router.fit(made, RouterSettings(abstain=0.01), mapped).report
    assert math.isfinite(report.threshold)
    assert any("hardly any stranger goes to the base" in line for line in report.warnings)


def test_probability_is_that_of_being_right(fitted: Router) -> None:
    """Expected calibration error on fresh prompts, half of them strangers'."""
    rows, labels = [], []
    for name, seed, count in (("law", 91_005, 300), ("base", 91_007, 300)):
        rows.append(pooled_states(seed, count, HIDDEN)[:, 1])
        labels += [name] * count
    batch = fitted.decide_batch(np.concatenate(rows))
    right = np.array([d.route == name for d, name in zip(batch.decisions(), labels, strict=True)])
    bins = np.clip((batch.probability * 10).astype(int), 0, 9)
    error = sum(
        abs(right[bins == b].mean() - batch.probability[bins == b].mean()) * (bins == b).mean()
        for b in set(bins.tolist())
    )
    assert error <= 0.1


def test_everything_is_stored(fitted: Router) -> None:
    probes = pooled_states(9, 50, HIDDEN)[:, 0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "router.safetensors"
        save_router(path, fitted, "contract")
        again = load_router(path).router
    assert again.report == fitted.report
    assert again.known == fitted.known
    before, after = fitted.decide_batch(probes), again.decide_batch(probes)
    for name in ("score", "probability", "scores", "abstained"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for term, values in before.terms.items():
        np.testing.assert_array_equal(after.terms[term], values)
