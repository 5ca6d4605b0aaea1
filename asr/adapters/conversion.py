"""Initialisations that rewrite the base: what they took is given back, and the adapter converted.

PiSSA and OLoRA start from factors ``A0, B0`` of the weight ``W`` and train over the rest,
``W - s B0 A0``. After training the model computes ``W - s B0 A0 + s B A``, which is ``W`` with the
plain LoRA ``s [B, -B0] [A; A0]`` of twice the rank. So the base comes back bit for bit, and the
adapter runs beside all others. The conversion of the tensors is PEFT's own.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from asr.adapters.placement import Placement

_ATTRIBUTE = "asr_rewritten"


@dataclass(frozen=True)
class Rewritten:
    """What stands beside a model whose base an initialisation rewrote.

    Attributes:
        weights: the base's own weights by module name, in main memory.
        start: ``A0`` and ``B0`` under the names of the model's parameters.
        initialisation: the name of it.
    """

    weights: dict[str, Tensor]
    start: dict[str, Tensor]
    initialisation: str


def own_weights(model: nn.Module, placement: Placement) -> dict[str, Tensor]:
    """Copy the weights of the placement's modules into main memory."""
    weights: dict[str, Tensor] = {}
    for name in placement.names:
        module: Any = model.get_submodule(name)
        weights[name] = module.weight.detach().to("cpu", copy=True)
    return weights


def remember(peft_model: PeftModel, weights: dict[str, Tensor], initialisation: str) -> None:
    """Keep with the model what :func:`give_back` and :func:`to_plain` need."""
    start = {
        name: parameter.detach().clone()
        for name, parameter in peft_model.base_model.named_parameters()
        if ".lora_" in name
    }
    setattr(peft_model, _ATTRIBUTE, Rewritten(weights, start, initialisation))


def rewritten(peft_model: PeftModel) -> Rewritten | None:
    """What was remembered; None where the base is untouched."""
    return vars(peft_model).get(_ATTRIBUTE)


@torch.no_grad()
def give_back(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write the base's own weights into its modules, wrapped by PEFT or not."""
    for name, weight in weights.items():
        module: Any = model.get_submodule(name)
        if isinstance(module, LoraLayer):
            module = module.get_base_layer()
        module.weight.copy_(weight)


def to_plain(
    peft_model: PeftModel, state: dict[str, Tensor], adapter: str
) -> tuple[dict[str, Tensor], LoraConfig]:
    """Return state and configuration of the plain LoRA that equals the trained adapter.

    Where the base is untouched, both are as they are. Else the rank of every module doubles, and
    alpha such that the scaling stays. The configuration is a copy, and asks for no initialisation:
    that is over.

    Args:
        peft_model: the model with the trained adapter.
        state: the adapter's state dict in PEFT's naming.
        adapter: its name in ``peft_model``.
    """
    config: Any = copy.deepcopy(peft_model.peft_config[adapter])
    config.init_lora_weights = True
    memory = rewritten(peft_model)
    if memory is None:
        return state, config
    attached: Any = peft_model.peft_config[adapter]
    name = attached.base_model_name_or_path
    attached.base_model_name_or_path = None  # else PEFT asks the hub about embeddings
    try:
        lora: Any = peft_model.base_model
        state = lora.subtract_mutated_init(state, adapter, {"state_dict": dict(memory.start)})
    finally:
        attached.base_model_name_or_path = name
    config.r *= 2
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    # alpha / r, or alpha / sqrt(r) with rsLoRA
    growth = math.sqrt(2) if config.use_rslora else 2
    config.lora_alpha *= growth
    config.alpha_pattern = {name: alpha * growth for name, alpha in config.alpha_pattern.items()}
    return state, config
