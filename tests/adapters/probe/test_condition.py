"""KappaTune's ranks against condition numbers by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from asr.adapters import linear_modules
from asr.adapters.probe.condition import condition_ranks, why_left_out
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "mixtral"])
def test_ranks_are_those_of_the_condition_numbers(architecture: str) -> None:
    model = tiny_model(architecture)
    modules = linear_modules(model)
    kappas = [
        np.linalg.cond(model.get_submodule(m.name).weight.detach().numpy().astype(np.float64))
        for m in modules
    ]
    expected = np.empty(len(modules), dtype=int)
    expected[np.argsort(kappas)] = np.arange(1, len(modules) + 1)
    assert condition_ranks(model, modules) == expected.tolist()


def test_ranks_are_among_the_modules_asked_for() -> None:
    model = tiny_model()
    modules = linear_modules(model)
    every = dict(zip(modules, condition_ranks(model, modules), strict=True))
    some = modules[7:14]
    order = sorted(some, key=lambda m: every[m] or 0)
    assert condition_ranks(model, some) == [order.index(m) + 1 for m in some]


def test_conv1d_modules_have_no_rank() -> None:
    model = tiny_model("gpt2")
    modules = linear_modules(model)
    assert condition_ranks(model, modules) == [None] * len(modules)


def test_when_the_ranks_are_left_out() -> None:
    small = tiny_model()
    assert why_left_out(small, None, None) is None
    assert why_left_out(small, "nf4", True) is None
    assert why_left_out(small, None, False) == "KappaTune's rank: not asked for"
    assert why_left_out(small, "int8", True) == (
        "KappaTune's rank: PEFT reads 8-bit weights without their scales"
    )
    with torch.device("meta"):
        large = nn.Linear(40_000, 32_000, bias=False)
    assert why_left_out(large, None, None) == (
        "KappaTune's rank: the base has 1.3 billion parameters, and every weight would be "
        "decomposed; ask for it (--kappa) to wait for it"
    )
    assert why_left_out(large, None, True) is None


class Params4bit(nn.Parameter):
    """Named as in bitsandbytes: two weights in each entry."""


def test_weights_of_four_bits_count_one_by_one() -> None:
    packed = nn.Module()
    packed.weight = Params4bit(
        torch.empty(640_000_000, dtype=torch.uint8, device="meta"), requires_grad=False
    )
    assert (why_left_out(packed, "nf4", None) or "").startswith(
        "KappaTune's rank: the base has 1.3 billion parameters, "
    )
