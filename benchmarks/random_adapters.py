"""Adapters with random weights, for measurements in which only their shapes matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from asr.adapters import LoraSettings, attach_for_training, detach, resolve_placement, save_adapter
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase
from asr.base.quiet import quiet_libraries


def write_adapters(
    base: LoadedBase, folder: Path, names: list[str], placement: Any = "deep", rank: int = 8
) -> dict[str, Path]:
    """Write adapters in PEFT's format, as training would; return their folders by name.

    Weights are small enough that answers stay finite, and large enough that they differ.
    """
    where = resolve_placement(base.model, placement, default_router_layer(base.n_layers))
    with quiet_libraries():
        model = attach_for_training(base.model, where, LoraSettings(rank), base.name, seed=0)
    folders = {}
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if ".lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        save_adapter(
            model, folders[name], domain=name, fingerprint=base.fingerprint, facts={"seed": seed}
        )
    detach(model)
    return folders
