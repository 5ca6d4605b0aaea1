"""Synthetic domains: Gaussian clouds of pooled states; the second view of a prompt is noisier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asr.router import CalibrationBlock, DomainStatistics, FeatureMap, RoutingDomain

VIEWS = ("templated", "bare")
MakeDomain = Callable[..., RoutingDomain]


def pooled_states(
    seed: int, prompts: int, hidden: int, views: int = 2, separation: float = 1.5
) -> np.ndarray:
    """Return (prompts, views, hidden) float32 around a centre drawn from ``seed``."""
    generator = np.random.default_rng(seed)
    centre = np.random.default_rng(seed % 1000).standard_normal(hidden) * separation
    base = centre + generator.standard_normal((prompts, 1, hidden))
    noise = generator.standard_normal((prompts, views, hidden)) * np.arange(views)[:, None]
    return (base + noise).astype(np.float32)


@pytest.fixture(scope="session")
def make_domain() -> MakeDomain:
    """A factory of routing domains; the same arguments give the same bits."""

    def make(
        name: str,
        seed: int,
        feature_map: FeatureMap,
        prompts: int = 40,
        held_out: int = 60,
        kind: str = "domain",
        separation: float = 1.5,
        views: int = 2,
    ) -> RoutingDomain:
        hidden = feature_map.hidden_size
        statistics = DomainStatistics(feature_map.dimension, kind=kind)  # type: ignore[arg-type]
        statistics.update(feature_map(pooled_states(seed, prompts, hidden, views, separation)))
        block = CalibrationBlock(
            pooled_states(seed + 1000, held_out, hidden, views, separation), VIEWS[:views]
        )
        return RoutingDomain(name, statistics, block)

    return make
