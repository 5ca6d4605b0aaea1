"""Typicality from the sums against the definition over the rows."""

from __future__ import annotations

import numpy as np
import pytest

from asr.router import DomainStatistics, FeatureMap
from asr.router.gaussian import SHRINKAGE, DomainGaussians
from tests.router.conftest import pooled_states

HIDDEN = 12


def shrunk(covariance: np.ndarray) -> np.ndarray:
    mean = np.trace(covariance) / len(covariance)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * mean * np.eye(len(covariance))


@pytest.mark.parametrize("sizes", [(30, 50, 20), (3, 2, 4)])
def test_equals_the_definition_over_all_rows(sizes: tuple[int, ...]) -> None:
    mapped = FeatureMap(HIDDEN)
    views = [mapped(pooled_states(seed, count, HIDDEN)) for seed, count in enumerate(sizes)]
    found = DomainGaussians.fit([DomainStatistics(HIDDEN + 1).update(x) for x in views])
    assert found is not None
    rows = [x[..., :-1] for x in views]
    total = sum(sizes)
    means = [x.mean(axis=(0, 1)) for x in rows]
    overall = sum(x.mean(axis=1).sum(axis=0) for x in rows) / total
    spread = [
        np.einsum("nvi,nvj->ij", x - m, x - m) / x.shape[1]
        for x, m in zip(rows, means, strict=True)
    ]
    around = [np.einsum("nvi,nvj->ij", x - overall, x - overall) / x.shape[1] for x in rows]
    inverse_w = np.linalg.inv(shrunk(sum(spread) / total))
    inverse_0 = np.linalg.inv(shrunk(sum(around) / total))

    def distance(x: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        return np.einsum("mi,ij,mj->m", x - mean, inverse, x - mean)

    probes = mapped.normalise(pooled_states(9, 40, HIDDEN)[:, 0])
    nearest = np.min([distance(probes, mean, inverse_w) for mean in means], axis=0)
    expected = distance(probes, overall, inverse_0) - nearest
    whitened = found.whiten(probes)
    np.testing.assert_allclose(found.typicality(probes, whitened), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.square(whitened).sum(axis=1), distance(probes, overall, inverse_w), rtol=1e-4
    )


def test_far_from_all_domains_is_atypical() -> None:
    mapped = FeatureMap(HIDDEN)
    made = [
        DomainStatistics(HIDDEN + 1).update(mapped(pooled_states(seed, 60, HIDDEN)))
        for seed in range(3)
    ]
    found = DomainGaussians.fit(made)
    assert found is not None

    def typicality(states: np.ndarray) -> np.ndarray:
        normalised = mapped.normalise(states)
        return found.typicality(normalised, found.whiten(normalised))

    known = typicality(pooled_states(1001, 100, HIDDEN)[:, 0])  # seed 1's centre
    strangers = typicality(pooled_states(7, 100, HIDDEN)[:, 0])
    assert np.median(known) > np.quantile(strangers, 0.9)


def test_prompts_without_spread_have_no_gaussian() -> None:
    one = DomainStatistics(HIDDEN + 1).update(FeatureMap(HIDDEN)(pooled_states(0, 1, HIDDEN, 1)))
    assert DomainGaussians.fit([one]) is None


def test_tensors_round_trip_and_refusal() -> None:
    made = DomainStatistics(HIDDEN + 1).update(FeatureMap(HIDDEN)(pooled_states(0, 9, HIDDEN)))
    found = DomainGaussians.fit([made])
    assert found is not None
    tensors = found.to_tensors()
    again = DomainGaussians.from_tensors(tensors)
    for name in tensors:
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    with pytest.raises(ValueError, match="factors of other shapes"):
        DomainGaussians.from_tensors({**tensors, "within": tensors["within"][:-1]})
    with pytest.raises(KeyError):
        DomainGaussians.from_tensors({"mean": tensors["mean"]})
