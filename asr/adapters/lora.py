"""LoRA adapters on the frozen base: attaching one for training, taking it off again.

The definition of LoRA is PEFT's. This module makes its configuration from explicit module names,
counts what PEFT really attached, and guarantees that the base comes back as it was.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from asr.adapters.conversion import give_back, own_weights, remember, rewritten
from asr.adapters.placement import Placement
from asr.adapters.variants import (
    Initialisation,
    initialisation_problem,
    rewrites_base,
    shape_problem,
)
from asr.errors import AdapterError, first_line

TRAINING_NAME = "default"
"""PEFT's own default name: one adapter is trained at a time, and its files carry no name."""


@dataclass(frozen=True)
class LoraSettings:
    """Hyperparameters of one adapter: update ``alpha / rank * B A`` (arXiv 2106.09685).

    Attributes:
        rank: rank of the update, >= 1.
        alpha: numerator of the scaling.
        dropout: dropout on the input of ``A`` while training, in [0, 1).
        use_rslora: scale by ``alpha / sqrt(rank)`` instead (rsLoRA, arXiv 2312.03732).
        init_lora_weights: how ``A`` and ``B`` start, in PEFT's names; which of them are offered:
            :mod:`asr.adapters.variants`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    use_rslora: bool = False
    init_lora_weights: Initialisation = True

    @property
    def saved_times(self) -> int:
        """How many times its rank an adapter is saved with: 2 where its start rewrites the base."""
        return 2 if rewrites_base(self.init_lora_weights) else 1

    @property
    def saved_rank(self) -> int:
        """Rank of the saved adapter: twice ``rank`` where the initialisation rewrites the base."""
        return self.rank * self.saved_times

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest; variants only where they are asked for."""
        values = asdict(self)
        return {
            key: value
            for key, value in values.items()
            if key in ("rank", "alpha", "dropout") or value != _DEFAULTS[key]
        }


_DEFAULTS = {field.name: field.default for field in fields(LoraSettings)}


def lora_config(placement: Placement, settings: LoraSettings, base_name: str) -> LoraConfig:
    """PEFT's configuration for a placement, with explicit full module names.

    Where modules have ranks of their own, ``r`` is the largest of them, and patterns hold the
    others. All modules then share the scale ``alpha / rank`` of the settings, so that an engine
    that knows one scale per adapter computes the same. rsLoRA shares ``alpha`` instead, as it is
    defined: each module is scaled by ``alpha / sqrt(its rank)``.
    """
    ranks = placement.ranks_at(settings.rank)
    largest = max(ranks)
    smaller = {
        exact_pattern(module.name): rank
        for module, rank in zip(placement.modules, ranks, strict=True)
        if rank != largest
    }

    def alpha(rank: int) -> int:
        """PEFT types alpha as int but only divides by it; integers keep older readers happy."""
        same = settings.use_rslora or rank == settings.rank
        value = settings.alpha if same else settings.alpha * rank / settings.rank
        return int(value) if value == int(value) else value  # type: ignore[return-value]

    return LoraConfig(
        r=largest,
        lora_alpha=alpha(largest),
        lora_dropout=settings.dropout,
        use_rslora=settings.use_rslora,
        init_lora_weights=settings.init_lora_weights,  # type: ignore[arg-type]
        target_modules=placement.names,
        rank_pattern=smaller,
        alpha_pattern={}
        if settings.use_rslora
        else {name: alpha(rank) for name, rank in smaller.items()},
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        fan_in_fan_out=all(module.transposed for module in placement.modules),
    )


def exact_pattern(name: str) -> str:
    """A key of PEFT's patterns that means this module only.

    They are regular expressions, which PEFT compares with every ending of a name.
    """
    return "^" + re.escape(name)


def check_variant(model: nn.Module, placement: Placement, settings: LoraSettings) -> None:
    """Refuse an initialisation that is not offered, or that a module of the placement rules out.

    Raises:
        AdapterError: names the initialisation, the module, the reason and what to use instead.
    """
    name = settings.init_lora_weights
    problem = initialisation_problem(name)
    if problem is not None:
        raise AdapterError(problem)
    for module, rank in zip(placement.modules, placement.ranks_at(settings.rank), strict=True):
        weight: Any = model.get_submodule(module.name).weight
        problem = shape_problem(
            name,
            rank,
            rows=module.out_features,
            columns=module.in_features,
            transposed=module.transposed,
            quantised=not weight.is_floating_point(),
        )
        if problem is not None:
            raise AdapterError(f"init_lora_weights {name}: '{module.name}': it {problem}")


def attach_for_training(
    model: nn.Module, placement: Placement, settings: LoraSettings, base_name: str, seed: int
) -> PeftModel:
    """Wrap ``model`` with one fresh trainable adapter; everything else is frozen.

    Args:
        model: the plain base model (changed in place until :func:`detach`).
        placement: resolved placement.
        settings: rank, alpha, dropout, variant.
        base_name: name of the base for the adapter's configuration file.
        seed: seeds the initialisation of ``A``.

    Raises:
        AdapterError: if the model already carries adapters, if the variant is refused
            (:func:`check_variant`), if PEFT refuses a module or attached others than asked for, or
            if a parameter outside the adapter is trainable.
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise AdapterError("the base already carries an adapter; detach it before training")
    check_variant(model, placement, settings)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    name = settings.init_lora_weights
    weights = own_weights(model, placement) if rewrites_base(name) else {}
    torch.manual_seed(seed)
    config = lora_config(placement, settings, base_name)
    try:
        peft_model = PeftModel(model, config, TRAINING_NAME)
    except BaseException as error:
        give_back(model, weights)
        unwrap(model)
        if isinstance(error, ValueError):  # e.g. a module that a state-space model runs past
            raise AdapterError(
                f"PEFT cannot attach the adapter: {first_line(error)} Name other modules in "
                "adapter.placement.modules"
            ) from error
        raise
    # The start is made: from here on, and in checkpoints, it is an adapter like any other.
    config.init_lora_weights = True
    if weights:
        remember(peft_model, weights, str(name))
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
    expected = placement.parameters(settings.rank)
    if settings.init_lora_weights == "mica":  # B stays as it starts
        pairs = zip(placement.modules, placement.ranks_at(settings.rank), strict=True)
        expected = sum(module.in_features * rank for module, rank in pairs)
    if trainable != expected:
        detach(peft_model)
        raise AdapterError(f"{trainable} parameters are trainable, {expected} expected")
    return peft_model


def detach(peft_model: PeftModel) -> nn.Module:
    """Take every adapter off and return the plain base, its modules and weights as they were."""
    memory = rewritten(peft_model)
    base: nn.Module = peft_model.unload()
    if memory is not None:
        give_back(base, memory.weights)
    if hasattr(base, "peft_config"):
        del base.peft_config  # PEFT leaves it behind and warns at the next wrapping
    return base


def unwrap(model: nn.Module) -> None:
    """Put the base's modules back after PEFT failed half-way."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
