"""Probe results put together from made-up energies, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asr.adapters.placement import LinearModule
from asr.adapters.probe.result import ProbedBase, ProbeResult, ProbeSettings
from asr.adapters.probe.summary import MeasuredDomain, summarise

WIDTHS = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (32, 48), "mlp.down_proj": (48, 32)}
FINGERPRINT = "ab" * 32


def modules_of(layers: int = 4) -> list[LinearModule]:
    """Three modules a layer, in layer order."""
    return [
        LinearModule(f"model.layers.{layer}.{name}", layer, *widths)
        for layer in range(layers)
        for name, widths in WIDTHS.items()
    ]


def measured(
    name: str = "legal",
    *,
    means: Sequence[float],
    noise: float = 0.0,
    samples: int = 8,
    seeds: int = 3,
    seed: int = 0,
    whole: bool = False,
    **fields: Any,
) -> MeasuredDomain:
    """A domain whose samples lie around the given mean energies of the modules."""
    numbers = np.random.default_rng(seed)
    factor = 1 + noise * numbers.uniform(-1, 1, (samples, len(means)))
    energy = np.asarray(means, dtype=np.float64) * factor
    draws = tuple(tuple(range(k, samples, seeds)) for k in range(seeds))
    return MeasuredDomain(
        name=name,
        source=f"{name}.jsonl",
        examples=100,
        whole=whole,
        energy=energy,
        without_first=fields.pop("without_first", energy / 2),
        gradient=fields.pop("gradient", energy * 3),
        draws=fields.pop("draws", draws),
        **fields,
    )


def base_of(layers: int = 4, router_layer: int | None = 2) -> ProbedBase:
    return ProbedBase(
        name="tiny",
        fingerprint=FINGERPRINT,
        architecture="LlamaForCausalLM",
        n_layers=layers,
        router_layer=router_layer,
    )


def settings_of(**changes: Any) -> ProbeSettings:
    values: dict[str, Any] = {
        **{"rank": 8, "alpha": 16.0, "use_rslora": False, "init": True, "per": "sample"},
        **{"loss": "answer", "samples": 8, "seeds": 3, "max_length": 512, "batch_size": 8},
        **{"seed": 0, "dtype": "float32", "quantisation": None, **changes},
    }
    return ProbeSettings(**values)


def result_of(
    domains: Sequence[MeasuredDomain] | None = None,
    *,
    layers: int = 4,
    router_layer: int | None = 2,
    kappa: Sequence[int | None] | None = None,
    generic_text: bool = False,
    left_out: Sequence[str] = (),
    **settings: Any,
) -> ProbeResult:
    """A result over :func:`modules_of`; by default module 8 (layer 2, down_proj) leads."""
    modules = modules_of(layers)
    if domains is None:
        means = [1.0 + index for index in range(len(modules))]
        means[8] = 40.0
        domains = [measured(means=means, noise=0.1, alignment=[1.0] * len(modules))]
    return summarise(
        modules,
        domains,
        kappa,
        base=base_of(layers, router_layer),
        settings=settings_of(**settings),
        generic_text=generic_text,
        left_out=left_out,
    )
