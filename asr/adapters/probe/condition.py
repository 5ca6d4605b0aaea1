"""KappaTune's rank: modules by the condition number of their weights, the lowest first.

The ranking is PEFT's own (``peft.find_kappa_target_modules``, peft#3106); asked for every module,
it gives all of them in order. It reads no data. It takes the singular values of every weight, which
for a large base costs more than everything else in a probe together.

PEFT ranks ``nn.Linear`` only, up to 16,384 wide, and reads 8-bit weights without their scales:
``Conv1D`` modules and wider ones get no rank here, and 8-bit bases are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import find_kappa_target_modules
from torch import nn

from asr.adapters.placement import LinearModule
from asr.base.layers import decoder_layers

AFFORDABLE_PARAMETERS = 1_000_000_000
"""Up to this many parameters the ranks are made unasked."""

_NO_EXPERTS = ("/",)
"""An ending that no parameter has; an empty tuple would ask for PEFT's default."""


def condition_ranks(model: nn.Module, modules: Sequence[LinearModule]) -> list[int | None]:
    """Return the rank of each module among all of them, from 1 (lowest condition number).

    None where PEFT does not rank a module.

    Args:
        model: the base; its decoder layers are read, the head is not.
        modules: which to rank, of the decoder layers.

    Raises:
        BaseModelError: the decoder layers cannot be found.
    """
    layers = decoder_layers(model)
    found = find_kappa_target_modules(
        layers.modules,
        top_p=1.0,
        moe_param_suffixes=_NO_EXPERTS,  # 3-D parameters are no candidates
        show_progress=False,
    )
    order = [f"{layers.path}.{name}" for name in found["target_modules"] or []]
    wanted = {module.name for module in modules}
    ranks = {name: rank for rank, name in enumerate((n for n in order if n in wanted), start=1)}
    return [ranks.get(module.name) for module in modules]


def why_left_out(model: nn.Module, quantisation: str | None, asked: bool | None) -> str | None:
    """Say why the ranks are not made; None if they are.

    Args:
        model: the base.
        quantisation: of its weights.
        asked: True or False by the user; None decides by size.
    """
    if asked is False:
        return "KappaTune's rank: not asked for"
    if quantisation == "int8":
        return "KappaTune's rank: PEFT reads 8-bit weights without their scales"
    if asked is None:
        # Two weights of 4 bits are packed into one entry.
        size = sum(
            parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
            for parameter in model.parameters()
        )
        if size > AFFORDABLE_PARAMETERS:
            return (
                f"KappaTune's rank: the base has {size / 1e9:.1f} billion parameters, and every "
                "weight would be decomposed; ask for it (--kappa) to wait for it"
            )
    return None
