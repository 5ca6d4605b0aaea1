"""Energies against random starts, against gradients of real adapters, and on quantised bases."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asr.adapters import (
    LoraSettings,
    PageSettings,
    attach_for_training,
    detach,
    linear_modules,
    page_energies,
    resolve_placement,
)
from asr.adapters.probe import page as page_module
from asr.adapters.probe.start import Start
from asr.base.fingerprint import tensors_hash
from asr.base.load import load_base
from asr.errors import AdapterError
from tests.adapters.probe.probing import make_rows, row_loss, weight_gradients
from tests.tiny_models import tiny_model
from tests.wide_models import save_wide_base

DRAWS = 1000
SQUARE = (16.0 / 8) ** 2  # s^2 of alpha 16 and rank 8
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)


def probe(model, settings, rows=None, batch_size=3):
    rows = make_rows() if rows is None else rows
    return page_energies(
        model,
        rows,
        linear_modules(model),
        PageSettings(settings),
        pad_token_id=0,
        batch_size=batch_size,
    )


def drawn_energies(gradient, start, rank=8):
    """||s G A^T||^2 of ``DRAWS`` starts; A as PEFT draws it."""
    a = torch.empty(DRAWS * rank, gradient.shape[1])
    if start is True:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # its bound depends on the columns alone
    else:
        nn.init.normal_(a, std=1 / rank)
    to_b = (a @ gradient.T.float()).reshape(DRAWS, -1)
    return SQUARE * to_b.double().square().sum(1)


@pytest.mark.parametrize("start", [True, "gaussian"])
def test_the_expectation_over_a_thousand_draws(start):
    torch.manual_seed(0)
    z = []
    for architecture in ("llama", "gpt2"):
        model = tiny_model(architecture).double().requires_grad_(False)
        found = probe(model, LoraSettings(init_lora_weights=start))
        for index, row in enumerate(make_rows()):
            gradients = weight_gradients(model, row, found.modules)
            for place, gradient in enumerate(gradients):
                drawn = drawn_energies(gradient, start)
                error = drawn.std() / math.sqrt(DRAWS)
                z.append(((drawn.mean() - found.energy[index, place]) / error).item())
    z = np.array(z)
    assert len(z) == 5 * (28 + 16)
    assert np.abs(z).max() < 4.5
    assert 0.8 <= (z**2).mean() <= 1.2


def test_the_orthogonal_start_of_peft_itself():
    """A and B together; drawn by PEFT a thousand times for each of a few modules."""
    model = tiny_model().requires_grad_(False)
    settings = LoraSettings(init_lora_weights="orthogonal")
    row = make_rows()[:1]
    found = probe(model, settings, row)
    gradients = weight_gradients(model, row[0], found.modules)
    placement = resolve_placement(model, {"modules": [m.name for m in found.modules[:7]]}, 0)
    peft_model = attach_for_training(model, placement, settings, "tiny", 0)
    z = []
    torch.manual_seed(1)
    for place, module in enumerate(placement.modules):
        layer: Any = model.get_submodule(module.name)
        gradient = gradients[place].detach()
        drawn = torch.empty(DRAWS, dtype=torch.float64)
        for draw in range(DRAWS):
            layer.orthogonal_init("default")
            a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            drawn[draw] = (gradient @ a.T).square().sum() + (b.T @ gradient).square().sum()
        drawn *= SQUARE
        error = drawn.std() / math.sqrt(DRAWS)
        z.append(((drawn.mean() - found.energy[0, place]) / error).item())
    detach(peft_model)
    assert np.abs(np.array(z)).max() < 4.5
    assert np.mean(np.array(z) ** 2) < 2.5  # seven values only


def adapter_gradients(model, settings, modules, rows, seed=0):
    """Squared gradient norms of a real PEFT adapter per row and module, and its A by module."""
    placement = resolve_placement(model, {"modules": [m.name for m in modules]}, 0)
    peft_model = attach_for_training(model, placement, settings, "tiny", seed)
    layers: list[Any] = [peft_model.get_submodule(f"base_model.model.{m.name}") for m in modules]
    factors = [[layer.lora_A["default"].weight, layer.lora_B["default"].weight] for layer in layers]
    found = np.zeros((len(rows), len(modules)))
    for index, row in enumerate(rows):
        peft_model.zero_grad()
        row_loss(peft_model, row).backward()
        for place, pair in enumerate(factors):
            found[index, place] = sum(
                factor.grad.double().square().sum().item()
                for factor in pair
                if factor.requires_grad
            )
    starts = [pair[0].detach().clone() for pair in factors]
    detach(peft_model)
    return found, starts


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("start", [True, "gaussian"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "opt"])
def test_real_adapters_get_this_gradient_for_the_same_a(architecture, start, rslora, monkeypatch):
    model, rows = tiny_model(architecture).requires_grad_(False), make_rows()
    modules = linear_modules(model)
    settings = LoraSettings(4, 6.0, use_rslora=rslora, init_lora_weights=start)
    true, starts = adapter_gradients(model, settings, modules, rows)
    by_name = {module.name: a for module, a in zip(modules, starts, strict=True)}
    square = 6.0**2 / 4 if rslora else (6.0 / 4) ** 2

    def this_a(model, module, settings):
        return Start(square, a=by_name[module.name])

    monkeypatch.setattr(page_module, "start_of", this_a)
    found = probe(model, settings)
    assert np.abs(found.energy / true - 1).max() < 1e-4  # both in float32


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("architecture", "start"),
    [
        ("llama", "pissa"),
        ("llama", "olora"),
        ("llama", "mica"),
        ("gpt2", "pissa"),
        ("gpt2", "mica"),
    ],
)
def test_starts_out_of_the_weights_get_this_gradient(architecture, start, rslora):
    model, rows = tiny_model(architecture).requires_grad_(False), make_rows()
    frozen = tensors_hash(model)
    modules = linear_modules(model)
    settings = LoraSettings(4, 6.0, use_rslora=rslora, init_lora_weights=start)
    found = probe(model, settings)
    assert tensors_hash(model) == frozen
    true, _ = adapter_gradients(model, settings, modules, rows)
    # the base is rebuilt from W - s B A, so that activations differ in their last digits
    assert np.abs(found.energy / true - 1).max() < 1e-3
    exact = probe(model.double(), settings)
    assert np.abs(found.energy / exact.energy - 1).max() < 1e-3


def test_the_fast_decomposition_is_seeded():
    settings = LoraSettings(4, init_lora_weights="pissa_niter_30")
    model = tiny_model()
    first = probe(model, settings).energy
    torch.rand(7)
    assert np.array_equal(probe(model, settings).energy, first)
    whole = probe(model, LoraSettings(4, init_lora_weights="pissa")).energy
    assert np.abs(first / whole - 1).mean() < 0.05


class StraightThrough(nn.Linear):
    """A float module with dequantised weights; its values are those of the 8-bit module.

    That one rounds its inputs to 8 bits too, and passes gradients as if it did not.
    """

    def forward(self, hidden):
        out = super().forward(hidden)
        return out + (self.stored(hidden.detach()) - out).detach()


def dequantised(stored: Any) -> nn.Module:
    from bitsandbytes.functional import dequantize_4bit

    kind = nn.Linear if stored.weight.dtype is torch.uint8 else StraightThrough
    whole = kind(stored.in_features, stored.out_features, bias=stored.bias is not None)
    object.__setattr__(whole, "stored", stored)  # no submodule
    with torch.no_grad():
        if stored.weight.dtype is torch.uint8:
            whole.weight.copy_(dequantize_4bit(stored.weight.data, stored.weight.quant_state))
        else:
            whole.weight.copy_(stored.state.CB * (stored.state.SCB.unsqueeze(1) / 127))
        if stored.bias is not None:
            whole.bias.copy_(stored.bias)
    return whole.requires_grad_(False).eval()


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_has_the_energies_of_its_dequantised_weights(tmp_path, architecture, kind):
    folder = save_wide_base(tmp_path, architecture)
    model = load_base(str(folder), device="cpu", dtype="float32", quantisation=kind).model
    modules, rows = linear_modules(model), make_rows()
    assert not model.get_submodule(modules[0].name).weight.is_floating_point()
    frozen = tensors_hash(model)
    # batch mates share the columns that int8 keeps whole, and may so move its rounding
    found = probe(model, LoraSettings(), batch_size=1)
    assert tensors_hash(model) == frozen
    whole = load_base(str(folder), device="cpu", dtype="float32").model
    for module in modules:
        stored = model.get_submodule(module.name)
        whole.set_submodule(module.name, dequantised(stored))
    true = np.array(
        [[g.square().sum().item() for g in weight_gradients(whole, row, modules)] for row in rows]
    )
    assert np.abs(found.gradient / true - 1).max() < 1e-3


@needs_bitsandbytes
def test_starts_that_read_quantised_weights_are_refused(tmp_path):
    base = load_base(
        str(save_wide_base(tmp_path)), device="cpu", dtype="float32", quantisation="nf4"
    )
    with pytest.raises(AdapterError) as caught:
        probe(base.model, LoraSettings(4, init_lora_weights="pissa"))
    assert str(caught.value) == (
        "init_lora_weights pissa: 'model.layers.0.self_attn.q_proj': it reads the base's weights, "
        "which are quantised; use true or gaussian"
    )
