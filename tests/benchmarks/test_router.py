"""The comparison of solvers learns what it says it learns."""

from __future__ import annotations

import numpy as np
import pytest

from asr.router import FeatureMap
from benchmarks.router import FORMS, SampleRecursion, learners, measure, table


@pytest.fixture
def domains() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    centres = 3.0 * generator.normal(size=(3, 1, 1, 8))
    return [centre + generator.normal(size=(20, 2, 8)) for centre in centres]


@pytest.mark.parametrize("form", FORMS)
def test_the_recursion_is_one_ridge_regression(domains: list[np.ndarray], form: str) -> None:
    recursion = SampleRecursion(8, 3, 0.5, form)
    for label, features in enumerate(domains):
        recursion.learn(features, label)
    rows = np.concatenate(domains).reshape(-1, 8)
    targets = np.repeat(np.eye(3), 40, axis=0)
    expected = np.linalg.solve(rows.T @ rows + 0.5 * np.eye(8), rows.T @ targets)
    np.testing.assert_allclose(recursion._weights.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("expansion", [0, 40])
def test_every_method_learns_the_domains(domains: list[np.ndarray], expansion: int) -> None:
    pooled = np.concatenate([states[:, 0] for states in domains])
    labels = np.repeat([0, 1, 2], 20)
    found = measure(domains, {"dev": (pooled, labels)}, expansion, released=2)
    exact = {found[name]["dev"] for name in ("rls", "direct", "recursion", "recursion, in place")}
    assert min(exact) > 0.9
    assert found["RidgeClassifier"]["dev"] > 0.9
    assert all(len(found[name]["seconds"]) == 3 for name in ("rls", "direct", "SGDClassifier"))
    assert found["as released"]["samples"] == 2
    lines = table(9, found, ["dev"])
    assert len(lines) == 7
    assert lines[0].startswith("| 9 | rls | ")
    assert "from 2 samples" in lines[-1]


def test_ours_agree(domains: list[np.ndarray]) -> None:
    mapped = FeatureMap(8)
    made = learners(mapped, 3, ridge=0.01 * 120)
    for label, states in enumerate(domains):
        for name in ("rls", "direct"):
            made[name].learn(mapped(states), label)
    pooled = np.concatenate([states[:, 1] for states in domains])
    answers = [made[name].predict(pooled, mapped(pooled)) for name in ("rls", "direct")]
    np.testing.assert_array_equal(*answers)
