"""Weights laid out once for products with few rows: what decoding on a CPU spends its time on.

PyTorch's bfloat16 product on a CPU (oneDNN) lays the weight out anew in every call. With thousands
of rows that is lost in the product; with the eight rows of a decode step it takes as long again. A
copy that was laid out once (oneDNN's *reorder*, which PyTorch's own compiler uses too) halves such
a product: 62 against 116 microseconds for 576 x 576, and every result is the same bit for bit.

Only bfloat16 is packed: in float32 another order of sums would change the last bits, which features
and tests are compared by. The copy takes as much memory again as the linear weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Say = Callable[[str], None]

_SHARE = 0.25
"""Most of the free memory that packed copies may take."""


class PackedMatrix:
    """A matrix (o, i), ready for products ``x W^T``.

    Args:
        weight: (o, i) bfloat16 on the CPU.
    """

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 8)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T`` (+ bias): (..., o) from (..., i) bfloat16; carries no gradient."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return result


def can_pack(weight: Tensor) -> bool:
    """Whether a weight is of the kind that is packed, and this PyTorch and processor can."""
    return (
        weight.dtype is torch.bfloat16
        and weight.device.type == "cpu"
        and weight.ndim == 2
        and _works()
    )


def _works() -> bool:
    """Try the two operators once; they are PyTorch's own, and no promise of its interface."""
    global _tried
    if _tried is None:
        try:
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(24, 40, generator=generator).bfloat16()
            x = torch.randn(3, 40, generator=generator).bfloat16()
            _tried = torch.equal(PackedMatrix(weight).product(x), functional.linear(x, weight))
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            _tried = False
    return _tried


_tried: bool | None = None


def pack_linear_modules(model: nn.Module, say: Say) -> int:
    """Let the linear modules of a model use packed copies where no gradient is asked for.

    Nothing happens where none can be packed, or where the copies would take more than a quarter of
    the free memory; the latter is said. Calling it again packs what is new.

    Returns:
        Bytes of the copies.
    """
    chosen = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and can_pack(module.weight) and "forward" not in vars(module)
    ]
    size = sum(int(module.weight.nbytes) for module in chosen)
    free = _free_memory()
    if free is not None and size > _SHARE * free:
        say(
            f"weights: not packed for decoding, {size / 1e9:.1f} GB of copies would take more than "
            f"a quarter of the {free / 1e9:.1f} GB that are free; answers come about half as fast"
        )
        return 0
    for module in chosen:
        vars(module)["forward"] = _packed_forward(module)
    return size


def _packed_forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    matrix = PackedMatrix(module.weight)
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype is not torch.bfloat16:
            return original(x)
        return matrix.product(x, module.bias)

    return forward


def _free_memory() -> int | None:
    """Bytes that programs may still take; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    names: Any = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
