"""Which device and which dtype, chosen by capability and said aloud.

The dtype matters more than it looks on CPUs. Measured on a 135M Llama with two cores: with
AVX512-BF16 a bfloat16 forward is 3-7 times faster than float32; without it (AVX512F and VNNI only)
float32 is three times faster than bfloat16. So it follows what the processor has.

Nothing falls back: a device that is asked for and absent is an error.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from asr.errors import BaseModelError, did_you_mean

_CPUINFO: Final = Path("/proc/cpuinfo")

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def available_devices() -> list[str]:
    """Return the devices of this machine by the names torch takes, the best one first."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices += [f"xpu:{index}" for index in range(_xpu_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def choose_device(requested: str | None = None) -> torch.device:
    """Return the device to run on.

    Args:
        requested: ``auto`` or None for the best one there is; else ``cpu``, ``cuda`` (its first),
            ``cuda:1``, ``xpu``, ``mps``.

    Raises:
        BaseModelError: the device does not exist on this machine, or the name means nothing; the
            message lists what exists.
    """
    present = available_devices()
    if requested is None or requested == "auto":
        return torch.device(present[0])
    for name in (requested, f"{requested}:0"):
        if name in present:
            return torch.device(name)
    kinds = [*present, "auto", "cuda", "mps", "xpu"]
    known = re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", requested)
    reason = "" if known else did_you_mean(requested, kinds)
    if requested.split(":")[0] == "cuda" and torch.version.cuda is None and not torch.version.hip:
        reason = " (this torch was built without CUDA)"
    raise BaseModelError(
        f"no device '{requested}' here{reason}; there are: {', '.join(present)}; or say auto"
    )


def choose_dtype(device: torch.device, requested: str | None = None) -> tuple[torch.dtype, str]:
    """Return the dtype of the base's weights and the reason for it.

    Args:
        device: where the base runs.
        requested: ``auto`` or None to choose by capability; else a key of :data:`DTYPES`.

    Returns:
        The dtype, and a short phrase such as ``this CPU has AVX512-BF16``.

    Raises:
        BaseModelError: an unknown dtype name.
    """
    if requested is not None and requested != "auto":
        name = requested.removeprefix("torch.").lower()
        if name not in DTYPES:
            raise BaseModelError(
                f"unknown dtype '{requested}'{did_you_mean(name, DTYPES)}; there are: auto, "
                f"float32, bfloat16, float16"
            )
        return DTYPES[name], "as asked"
    if device.type == "cpu":
        fast = fast_bfloat16_instructions()
        if fast is not None:
            return torch.bfloat16, f"this CPU has {fast}"
        return torch.float32, "this CPU has neither AVX512-BF16 nor AMX: bfloat16 would be slower"
    if device.type == "cuda":
        if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "this GPU computes bfloat16"
        return torch.float16, "this GPU does not compute bfloat16"
    if device.type == "xpu":
        return torch.bfloat16, "this GPU computes bfloat16"
    if torch.backends.mps.is_macos_or_newer(14, 0):
        return torch.bfloat16, "macOS 14 or newer computes bfloat16"
    return torch.float32, "this macOS does not compute bfloat16"


def fast_bfloat16_instructions() -> str | None:
    """Return the CPU's instructions that make bfloat16 products fast, or None.

    Asked of torch, under the names of its versions since 2.6; of ``/proc/cpuinfo`` where torch does
    not say. bfloat16 of ARM CPUs is left out: nothing was measured there.
    """
    has = _torch_cpu_capabilities() or _cpuinfo_capabilities()
    if has.get("amx_bf16"):
        return "AMX-BF16"
    if has.get("avx512_bf16"):
        return "AVX512-BF16"
    return None


def _torch_cpu_capabilities() -> dict[str, bool]:
    """Ask torch; empty where this version cannot tell."""
    whole = getattr(torch.cpu, "get_capabilities", None)
    if whole is not None:
        found: Mapping[str, object] = whole()
        return {key: bool(found.get(key, False)) for key in ("amx_bf16", "avx512_bf16")}
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)  # every AMX CPU has AMX-BF16
    avx = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if amx is None or avx is None:
        return {}
    return {"amx_bf16": bool(amx()), "avx512_bf16": bool(avx())}


def _cpuinfo_capabilities() -> dict[str, bool]:
    """Read the flags of the first processor; empty on systems without ``/proc/cpuinfo``."""
    if not _CPUINFO.is_file():
        return {}
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^flags\s*:\s*(.*)$", text, flags=re.MULTILINE)
    flags = set(match.group(1).split()) if match else set()
    return {key: key in flags for key in ("amx_bf16", "avx512_bf16")}


def describe(device: torch.device, dtype: torch.dtype, reason: str) -> str:
    """Return the line that is said aloud, e.g. ``cpu (x86_64, 2 threads), bfloat16: ...``."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        what = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB"
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        what = f"{platform.machine()}, {threads} thread{'' if threads == 1 else 's'}"
    else:
        what = platform.machine()
    return f"{device} ({what}), {str(dtype).removeprefix('torch.')}: {reason}"


def _xpu_count() -> int:
    xpu = getattr(torch, "xpu", None)
    return int(xpu.device_count()) if xpu is not None and xpu.is_available() else 0
