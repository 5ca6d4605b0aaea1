"""LoRA adapters on the frozen base: attaching one for training, taking it off again.

The definition of LoRA is PEFT's. This module makes its configuration from explicit module names,
counts what PEFT really attached, and guarantees that the base comes back as it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from asr.adapters.placement import Placement
from asr.errors import AdapterError

TRAINING_NAME = "default"
"""PEFT's own default name: one adapter is trained at a time, and its files carry no name."""


@dataclass(frozen=True)
class LoraSettings:
    """Hyperparameters of one adapter: update ``alpha / rank * B A`` (arXiv 2106.09685).

    Attributes:
        rank: rank of the update, >= 1.
        alpha: numerator of the scaling.
        dropout: dropout on the input of ``A`` while training, in [0, 1).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def lora_config(placement: Placement, settings: LoraSettings, base_name: str) -> LoraConfig:
    """PEFT's configuration for a placement, with explicit full module names."""
    return LoraConfig(
        r=settings.rank,
        # PEFT types alpha as int but only divides by it; an integer keeps older readers happy.
        lora_alpha=int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=placement.names,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        fan_in_fan_out=all(module.transposed for module in placement.modules),
    )


def attach_for_training(
    model: nn.Module, placement: Placement, settings: LoraSettings, base_name: str, seed: int
) -> PeftModel:
    """Wrap ``model`` with one fresh trainable adapter; everything else is frozen.

    Args:
        model: the plain base model (changed in place until :func:`detach`).
        placement: resolved placement.
        settings: rank, alpha, dropout.
        base_name: name of the base for the adapter's configuration file.
        seed: seeds the initialisation of ``A``.

    Raises:
        AdapterError: if the model already carries adapters, if PEFT attached other modules than
            asked for, or if a parameter outside the adapter is trainable.
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise AdapterError("the base already carries an adapter; detach it before training")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(seed)
    config = lora_config(placement, settings, base_name)
    peft_model = PeftModel(model, config, TRAINING_NAME)
    # From 20 names on PEFT shortens them to endings that fit this base only
    config.target_modules = placement.names
    attached = [
        name.removeprefix("base_model.model.")
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    ]
    if sorted(attached) != sorted(placement.names):
        detach(peft_model)
        missing = sorted(set(placement.names) ^ set(attached))
        raise AdapterError(
            f"PEFT attached {len(attached)} modules where {len(placement.names)} were asked for; "
            f"first difference: '{missing[0]}'"
        )
    trainable = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    if trainable != placement.parameters(settings.rank):
        detach(peft_model)
        raise AdapterError(
            f"{trainable} parameters are trainable, {placement.parameters(settings.rank)} expected"
        )
    return peft_model


def detach(peft_model: PeftModel) -> nn.Module:
    """Take every adapter off and return the plain base, its own modules back in place."""
    base: nn.Module = peft_model.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config  # PEFT leaves it behind and warns at the next wrapping
    return base
