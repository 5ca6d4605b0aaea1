"""Attaching trains the adapter only; detaching gives the very same base back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asr.adapters import LoraSettings, attach_for_training, detach, resolve_placement
from asr.adapters.lora import lora_config
from asr.base.fingerprint import tensors_hash
from asr.errors import AdapterError
from tests.adapters.making import batch, logits, randomise
from tests.tiny_models import ARCHITECTURES, hybrid_model, tiny_model


def lora_a(peft_model):
    return {n: p.clone() for n, p in peft_model.named_parameters() if ".lora_A." in n}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "opt"])
def test_the_base_is_frozen_while_training_and_the_same_afterwards(architecture):
    model = tiny_model(architecture)
    ids, mask = batch()
    frozen, plain = tensors_hash(model), logits(model, ids, mask)
    modules = dict(model.named_modules())
    placement = resolve_placement(model, "deep", 2)
    peft_model = attach_for_training(model, placement, LoraSettings(4, 8.0), "tiny", 0)
    assert torch.equal(logits(model, ids, mask), plain)  # B starts at zero
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step only B moves
        optimizer.zero_grad()
        peft_model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        optimizer.step()
    assert not torch.equal(logits(model, ids, mask), plain)

    assert detach(peft_model) is model
    assert tensors_hash(model) == frozen
    after = dict(model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is module for name, module in modules.items())
    assert torch.equal(logits(model, ids, mask), plain)
    assert not any(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")
    # nothing keeps the base from being wrapped again, without a warning
    detach(attach_for_training(model, placement, LoraSettings(2), "tiny", 0))


def test_a_is_seeded_and_independent_of_what_ran_before():
    placement = resolve_placement(tiny_model(), "deep", 2)

    def start(seed):
        torch.rand(seed)  # moves the global generator
        return lora_a(attach_for_training(tiny_model(), placement, LoraSettings(4), "tiny", seed))

    first, again, other = start(3), start(3), start(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_second_adapter_is_refused_and_the_first_stays():
    model = tiny_model()
    placement = resolve_placement(model, "deep", 2)
    peft_model = attach_for_training(model, placement, LoraSettings(4), "tiny", 0)
    before = lora_a(peft_model)
    with pytest.raises(AdapterError, match="already carries an adapter; detach it before training"):
        attach_for_training(model, placement, LoraSettings(4), "tiny", 0)
    after = lora_a(peft_model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_peft_attaches_is_compared_with_what_was_asked_for(monkeypatch):
    """PEFT matches names by their ends; were it handed an end, it would adapt every layer."""
    model = tiny_model()
    placement = resolve_placement(model, {"modules": ["model.layers.3.mlp.up_proj"]}, 2)

    def by_ending(placement, settings, base_name):
        config = lora_config(placement, settings, base_name)
        config.target_modules = {"up_proj"}
        return config

    monkeypatch.setattr("asr.adapters.lora.lora_config", by_ending)
    with pytest.raises(AdapterError, match="PEFT attached 4 modules where 1 were asked for"):
        attach_for_training(model, placement, LoraSettings(4), "tiny", 0)
    assert not any(".lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_update_is_alpha_over_rank_times_b_a(architecture):
    """One module, one step by hand: y = W x + alpha / rank * B A x."""
    model = tiny_model(architecture)
    name = resolve_placement(model, "deep", 3).names[-1]
    placement = resolve_placement(model, {"modules": [name]}, 3)
    base = model.get_submodule(name)
    width = placement.modules[0].in_features
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    plain = base(x)
    peft_model = attach_for_training(model, placement, LoraSettings(4, 10.0), "tiny", 0)
    randomise(peft_model, 9)
    layer = model.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = plain + (10.0 / 4) * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_a_module_that_peft_refuses_is_named_and_the_base_comes_back():
    """State-space mixers read the weight of ``out_proj`` past any adapter on it."""
    model = hybrid_model()
    before = [id(module) for module in model.modules()]
    deep = resolve_placement(model, "deep", 2)
    read_past = replace(deep.modules[0], name="model.layers.2.mamba.out_proj")
    with pytest.raises(AdapterError) as caught:
        refused = replace(deep, modules=(read_past,))
        attach_for_training(model, refused, LoraSettings(4), "tiny", 0)
    assert str(caught.value).startswith("PEFT cannot attach the adapter: ")
    assert "'out_proj' is incompatible with Mamba-based models" in str(caught.value)
    assert str(caught.value).endswith("Name other modules in adapter.placement.modules")
    assert [id(module) for module in model.modules()] == before
    detach(attach_for_training(model, deep, LoraSettings(4), "tiny", 0))
