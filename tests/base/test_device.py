"""Device and dtype follow the machine's capabilities, and absent devices are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asr.base import device as device_module
from asr.base.device import (
    available_devices,
    choose_device,
    choose_dtype,
    describe,
    fast_bfloat16_instructions,
)
from asr.errors import BaseModelError

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "12.8")


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "available_devices", lambda: ["cpu"])


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(device_module, "_torch_cpu_capabilities", lambda: capabilities)


def test_the_cpu_is_always_there_and_last() -> None:
    assert available_devices()[-1] == "cpu"
    assert choose_device("cpu") == CPU


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("requested", [None, "auto"])
def test_auto_without_an_accelerator_is_the_cpu(requested: str | None) -> None:
    assert choose_device(requested) == CPU


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("requested", "expected"),
    [(None, "cuda:0"), ("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_gpus_are_chosen_by_name(requested: str | None, expected: str) -> None:
    assert choose_device(requested) == torch.device(expected)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_too_many_names_those_that_exist() -> None:
    with pytest.raises(BaseModelError, match=r"no device 'cuda:2' here; there are: cuda:0, cuda:1"):
        choose_device("cuda:2")


@pytest.mark.usefixtures("no_accelerator")
def test_an_absent_gpu_is_an_error_and_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BaseModelError, match=r"'cuda' here \(this torch was built without CUDA\)"):
        choose_device("cuda")
    with pytest.raises(BaseModelError, match="there are: cpu; or say auto"):
        choose_device("mps")


@pytest.mark.usefixtures("no_accelerator")
def test_a_mistyped_device_is_guessed() -> None:
    with pytest.raises(BaseModelError, match=r"no device 'cdua' here \(did you mean 'cuda'\?\)"):
        choose_device("cdua")


@pytest.mark.parametrize(
    ("capabilities", "dtype", "said"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16, "AVX512-BF16"),
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16, "AMX-BF16"),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32, "neither"),
    ],
)
def test_dtype_of_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    dtype: torch.dtype,
    said: str,
) -> None:
    pretend_cpu(monkeypatch, **capabilities)
    chosen, reason = choose_dtype(CPU)
    assert chosen is dtype
    assert said in reason


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)]
)
def test_dtype_of_a_gpu_follows_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert choose_dtype(torch.device("cuda:0"))[0] is expected


@pytest.mark.parametrize(
    ("requested", "expected"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("torch.float16", torch.float16)],
)
def test_a_dtype_that_is_asked_for_is_given(requested: str, expected: torch.dtype) -> None:
    assert choose_dtype(CPU, requested) == (expected, "as asked")


def test_an_unknown_dtype_is_guessed() -> None:
    with pytest.raises(BaseModelError, match=r"unknown dtype 'bflot16' \(did you mean 'bfloat16'"):
        choose_dtype(CPU, "bflot16")


def test_old_torch_is_asked_through_its_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert fast_bfloat16_instructions() == "AMX-BF16"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512f avx512_bf16", "AVX512-BF16"), ("fpu avx512f avx512_vnni", None)],
)
def test_cpuinfo_answers_where_torch_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: str | None
) -> None:
    pretend_cpu(monkeypatch)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(device_module, "_CPUINFO", cpuinfo)
    assert fast_bfloat16_instructions() == expected


def test_no_cpuinfo_means_no_fast_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_cpu(monkeypatch)
    monkeypatch.setattr(device_module, "_CPUINFO", tmp_path / "absent")
    assert fast_bfloat16_instructions() is None


def test_the_line_that_is_said_aloud() -> None:
    line = describe(CPU, torch.bfloat16, "this CPU has AVX512-BF16")
    assert line.startswith("cpu (")
    assert line.endswith("), bfloat16: this CPU has AVX512-BF16")
