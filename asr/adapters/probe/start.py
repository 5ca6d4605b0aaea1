r"""What an adapter's initialisation makes of a module's weight gradient.

For the adapter ``s B A`` on a module with weight gradient ``G`` (o x i) the gradients at
initialisation are ``dL/dB = s G A^T`` and ``dL/dA = s B^T G``, with ``s = alpha / r``, or
``alpha / sqrt(r)`` for rsLoRA. The *energy* is the expectation of ``||dL/dB||_F^2 + ||dL/dA||_F^2``
over the initialisation, of the factors that train. With ``||G A^T||_F^2 = tr(G A^T A G^T)``, all
that matters of a random ``A`` is ``E[A^T A]``, and of a random ``B`` it is ``E[B B^T]``:

- ``true``: A uniform with Var = 1 / (3 i), B = 0. ``E[A^T A] = r / (3 i) I``, so the energy is
  ``s^2 r / (3 i) ||G||^2``.
- ``gaussian``: A normal with Var = 1 / r^2, B = 0. ``E[A^T A] = 1 / r I``: ``s^2 / r ||G||^2``.
- ``orthogonal``: A = (X Q1)^T / 10 and B = Y Q2 / 10, where X (i x r/2) and Y (o x r/2) are
  standard normal and the rows of Q1 and Q2 (r/2 x r each) together an orthonormal basis. So
  ``Q1 Q1^T = I``, ``B A = 0`` and ``E[A^T A] = r / 200 I``, ``E[B B^T] = r / 200 I``:
  ``s^2 r / 100 ||G||^2``.
- ``mica``: A = 0, and B, the r minor left singular vectors of the weight W, stays frozen. Only A
  trains: ``s^2 ||B^T G||^2``.
- ``pissa``, ``pissa_niter_N``, ``olora``: A and B are factors of W:
  ``s^2 (||G A^T||^2 + ||B^T G||^2)``. ``s B A`` is moved out of the base, so the model
  computes what it did, and G is the same.

The starts are PEFT's. The first energy is the published form with its ``Var(A)`` put in, those of
``gaussian`` and ``orthogonal`` are derived here in the same way. The last two are no expectations:
A and B follow from W, and are taken from PEFT itself.

The widths of modules enter under ``true`` only: it favours narrow inputs by 1 / i.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from asr.adapters.lora import LoraSettings
from asr.adapters.placement import LinearModule
from asr.adapters.variants import rewrites_base

_SCALINGS = (1e-30, 1e30)
"""Beyond these, squares times gradients may leave the range of numbers."""

_SEED = 0
"""Of the randomised decomposition of ``pissa_niter_N``."""


@dataclass(frozen=True)
class Start:
    """An adapter at initialisation, as far as its energy depends on it.

    Energy: ``factor ||G||^2`` where no matrix is given, else
    ``factor (||G A^T||^2 + ||B^T G||^2)`` over the given ones.

    Attributes:
        factor: see above.
        a: (r, i), or None.
        b: (o, r), or None.
    """

    factor: float
    a: Tensor | None = None
    b: Tensor | None = None


def scaling(settings: LoraSettings) -> float:
    """``s`` of the update ``s B A``."""
    rank = settings.rank
    return settings.alpha / (math.sqrt(rank) if settings.use_rslora else rank)


def scaling_problem(settings: LoraSettings) -> str | None:
    """Why energies cannot be taken at this scaling, which they hold squared; None if they can."""
    found = scaling(settings)
    if _SCALINGS[0] <= found <= _SCALINGS[1]:
        return None
    divisor = f"sqrt({settings.rank})" if settings.use_rslora else str(settings.rank)
    least, most = _SCALINGS
    return (
        f"alpha is {settings.alpha:g}, so that the update is scaled by {settings.alpha:g} / "
        f"{divisor} = {found:g}; the probe takes {least:g} to {most:g}"
    )


def start_of(model: nn.Module, module: LinearModule, settings: LoraSettings) -> Start:
    """How an adapter on ``module`` starts.

    Args:
        model: the plain base model; only read.
        module: where the adapter would sit.
        settings: an initialisation that :func:`asr.adapters.lora.check_variant` accepts there.
    """
    name, rank = settings.init_lora_weights, settings.rank
    square = scaling(settings) ** 2
    if name is True:
        return Start(square * rank / (3 * module.in_features))
    if name == "gaussian":
        return Start(square / rank)
    if name == "orthogonal":
        return Start(square * rank / 100)
    if name == "mica":
        return Start(square, b=_factors(model, module, settings)[1])
    if rewrites_base(name):
        return Start(square, *_factors(model, module, settings))
    raise ValueError(f"no energy for init_lora_weights {name}")


def _factors(
    model: nn.Module, module: LinearModule, settings: LoraSettings
) -> tuple[Tensor, Tensor]:
    """``A`` and ``B`` as PEFT makes them, on a copy of the one module."""
    holder = nn.Module()
    holder.linear = copy.deepcopy(model.get_submodule(module.name))
    if next(holder.parameters()).dtype is torch.float64:
        holder.float()  # PEFT decomposes up to float32
    alpha: Any = settings.alpha  # PEFT types it as int but only divides by it
    name: Any = settings.init_lora_weights
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        use_rslora=settings.use_rslora,
        init_lora_weights=name,
        target_modules=["linear"],
        fan_in_fan_out=module.transposed,
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        inject_adapter_in_model(config, holder)
    layer: Any = holder.linear
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return a.detach(), b.detach()
