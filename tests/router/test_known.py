"""Weights of the terms and the sigmoid, against definitions and a general optimiser."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.optimize

from asr.router.known import EVIDENCE_ALONE, KnownScore, fit_sigmoid


def draws(seed: int, count: int, shift: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "evidence": generator.standard_normal(count) * 0.3 + shift,
        "typicality": generator.standard_normal(count) * 40 + 10 * shift,
    }


def test_terms_weigh_the_same_in_units_of_their_spread() -> None:
    known, others = draws(0, 300, 1.0), draws(1, 200, 0.0)
    made = KnownScore.fit(known, others)
    for name in known:
        pooled = np.sqrt((known[name].var() + others[name].var()) / 2)
        assert made.scales[name] == pytest.approx(pooled)
    np.testing.assert_allclose(
        made.score(known),
        known["evidence"] / made.scales["evidence"]
        + known["typicality"] / made.scales["typicality"],
    )
    sure = made.probability(made.score(known)).mean()
    assert sure > 0.8 > 0.2 > made.probability(made.score(others)).mean()


def test_one_term_stays_as_it_is() -> None:
    known = {"evidence": np.array([1.0, 2.0])}
    made = KnownScore.fit(known, {"evidence": np.zeros(0)})
    assert made == EVIDENCE_ALONE
    np.testing.assert_array_equal(made.score(known), known["evidence"])
    np.testing.assert_array_equal(made.probability(known["evidence"]), [1.0, 1.0])


@pytest.mark.parametrize("shift", [0.5, 2.0, 50.0])
def test_sigmoid_minimises_the_smoothed_cross_entropy(shift: float) -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.standard_normal(80) + shift, generator.standard_normal(30)
    slope, intercept = fit_sigmoid(positive, negative)

    def loss(parameters: np.ndarray) -> float:
        def part(scores: np.ndarray, target: float) -> float:
            logits = parameters[0] * scores + parameters[1]
            return float(np.mean(np.logaddexp(0, logits) - target * logits))

        return part(positive, 81 / 82) + part(negative, 1 / 32)

    best = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead", tol=1e-10)
    assert loss(np.array([slope, intercept])) <= best.fun + 1e-6
    assert slope > 0


def test_equal_scores_say_nothing() -> None:
    slope, intercept = fit_sigmoid(np.ones(9), np.ones(9))
    assert 1 / (1 + np.exp(-(slope + intercept))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("known", [EVIDENCE_ALONE, KnownScore({"evidence": 0.5}, 2.0, -1.0)])
def test_dict_round_trip(known: KnownScore) -> None:
    assert KnownScore.from_dict(json.loads(json.dumps(known.to_dict(), allow_nan=False))) == known
