"""Packed weights give the same bits, only where no gradient is asked for, and only if they fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from asr.adapters import AdapterBank
from asr.base import packed
from asr.base.packed import PackedMatrix, can_pack, pack_linear_modules
from tests.adapters.making import FINGERPRINT, make_adapter
from tests.tiny_models import tiny_model

needs_packing = pytest.mark.skipif(
    not can_pack(torch.zeros(8, 8, dtype=torch.bfloat16)),
    reason="this PyTorch or processor cannot pack bfloat16 weights",
)


def half_model():
    return tiny_model().to(torch.bfloat16).requires_grad_(False)


@needs_packing
@pytest.mark.parametrize("rows", [1, 8, 33, 400])
@pytest.mark.parametrize("shape", [(8, 8), (576, 192), (31, 65)])
def test_products_are_the_same_bit_for_bit(rows, shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).bfloat16()
    bias = torch.randn(shape[0], generator=generator).bfloat16()
    x = torch.randn(2, rows, shape[1], generator=generator).bfloat16()
    with torch.no_grad():
        assert torch.equal(PackedMatrix(weight).product(x), linear(x, weight))
        found, expected = PackedMatrix(weight).product(x, bias), linear(x, weight, bias)
    torch.testing.assert_close(found, expected)


@needs_packing
def test_a_packed_model_answers_bit_for_bit_and_still_learns():
    model, ids = half_model(), torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        before = model(input_ids=ids).logits
    said = []
    size = pack_linear_modules(model, said.append)
    assert size > 0 and said == []
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert pack_linear_modules(model, said.append) == 0  # all are packed already
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    model(input_ids=ids).logits.float().sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@needs_packing
def test_adapters_come_and_go_over_packed_modules(tmp_path):
    model, ids = half_model(), torch.arange(5, 45).view(2, 20)
    folder = make_adapter(tmp_path / "a")
    bank = AdapterBank(model, FINGERPRINT)
    bank.load("a", folder)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with bank.rows(["a", None]):
            mixed = model(input_ids=ids).logits
        pack_linear_modules(model, print)
        for _ in range(2):
            with bank.rows(["a", None]):
                assert torch.equal(model(input_ids=ids).logits, mixed)
            assert torch.equal(model(input_ids=ids).logits, plain)


def test_float32_and_other_modules_are_left_alone():
    model = tiny_model()
    assert pack_linear_modules(model, print) == 0
    assert not any("forward" in vars(module) for module in model.modules())
    assert not can_pack(torch.zeros(4, 4))
    assert not can_pack(torch.zeros(4, dtype=torch.bfloat16))


@needs_packing
def test_what_does_not_fit_is_said(monkeypatch):
    model, said = half_model(), []
    monkeypatch.setattr(packed, "_free_memory", lambda: 1000)
    assert pack_linear_modules(model, said.append) == 0
    assert len(said) == 1 and said[0].startswith("weights: not packed for decoding, 0.0 GB of")
    assert not any("forward" in vars(module) for module in model.modules())


def test_without_the_operators_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(packed, "_tried", None)
    monkeypatch.setattr(
        packed.PackedMatrix, "product", lambda *args: (_ for _ in ()).throw(RuntimeError)
    )
    assert not can_pack(torch.zeros(8, 8, dtype=torch.bfloat16))
    assert pack_linear_modules(nn.Sequential(nn.Linear(4, 4).bfloat16()), print) == 0
    monkeypatch.setattr(packed, "_tried", None)
