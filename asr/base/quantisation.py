"""Bases in 8 and 4 bits: what is asked for, what a checkpoint brings, and what bitsandbytes needs.

``int8`` and ``nf4`` are made while loading, from an ordinary checkpoint, through bitsandbytes. A
checkpoint may also arrive quantised; it is loaded as it is. LoRA stays in floating point on top, so
training, routing and mixed batches work as over any other base. The quantised weights are as frozen
as others: nothing is packed or rewritten while the model runs.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from asr.errors import BaseModelError

Quantisation = Literal["int8", "nf4"]
QUANTISATIONS: tuple[Quantisation, ...] = ("int8", "nf4")
UseQuantisation = Literal["int8", "nf4", "none"]
"""For use: ``none`` asks for the checkpoint as it is, whatever the adapters were trained over."""

_INSTALL = "pip install 'analytic-subspace-routing[quant]'"


def arriving_quantisation(folder: Path, name: str) -> str | None:
    """How the checkpoint in ``folder`` is quantised: ``int8``, ``nf4``, ``gptq``, ...; None if not.

    Raises:
        BaseModelError: its ``quantization_config`` names no method.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # loading says what is wrong with it
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not found:
        return None
    if isinstance(found, dict):
        if found.get("load_in_8bit"):
            return "int8"
        if found.get("load_in_4bit"):
            return str(found.get("bnb_4bit_quant_type", "fp4"))
        method = found.get("quant_method")
        if isinstance(method, str) and method:
            return method
    raise BaseModelError(
        f"the config.json of base '{name}' has a quantization_config that names no quant_method; "
        "take the base's original checkpoint and ask for quantisation int8 or nf4"
    )


def require_bitsandbytes(quantisation: str) -> None:
    """Refuse int8 and the 4-bit types where bitsandbytes is not installed.

    Raises:
        BaseModelError: says what to install.
    """
    if quantisation not in (*QUANTISATIONS, "fp4"):
        return  # other methods have libraries of their own, which transformers names
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BaseModelError(f"quantisation {quantisation} needs bitsandbytes; {_INSTALL}")


def require_device(quantisation: str, device: torch.device) -> None:
    """Refuse a device for which bitsandbytes has no code.

    Raises:
        BaseModelError: names the devices that it has code for.
    """
    if quantisation not in (*QUANTISATIONS, "fp4"):
        return
    import bitsandbytes

    known = sorted(bitsandbytes.supported_torch_devices)
    if device.type not in known:
        raise BaseModelError(
            f"bitsandbytes {bitsandbytes.__version__} has no quantisation {quantisation} for "
            f"{device.type}; it has code for {', '.join(known)}"
        )


def bitsandbytes_config(quantisation: Quantisation, dtype: torch.dtype) -> Any:
    """Return transformers' configuration of int8 (LLM.int8) or nf4 (double quantisation)."""
    if quantisation == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def require_whole_blocks(model: nn.Module, name: str) -> None:
    """Refuse 4-bit weights that bitsandbytes unpacks wrongly on the CPU.

    It packs a weight as one run of blocks (of 64 values), and its CPU code unpacks row by row: the
    two agree only where rows hold whole blocks. Elsewhere the weights come out wrong, silently.

    Raises:
        BaseModelError: names the first such module.
    """
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or module.weight.device.type != "cpu":
            continue
        width, block = int(state.shape[-1]), int(state.blocksize)
        if width % block:
            raise BaseModelError(
                f"base '{name}' cannot run in 4 bits on the CPU: '{path}' has rows of {width} "
                f"values, and bitsandbytes unpacks blocks of {block} there; use quantisation int8, "
                "or a GPU"
            )


def keep_as_stored(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in their first forward pass on some CPUs.

    With AVX512-BF16 it would rewrite them in place, rounding their scales to bfloat16: the base
    would be another one afterwards, and training would meet weights that it cannot differentiate.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
