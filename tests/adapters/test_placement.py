"""Which modules a placement means, on every architecture; every message word for word."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from asr.adapters import (
    LoraSettings,
    attach_for_training,
    detach,
    linear_modules,
    resolve_placement,
)
from asr.errors import AdapterError
from tests.tiny_models import ARCHITECTURES, HIDDEN, LAYERS, hybrid_model, tiny_model

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
KINDS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen3": LLAMA,
    "gemma3": LLAMA,
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj"},  # not the router, not the 3-D experts
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}
PER_LAYER = {**{name: len(kinds) for name, kinds in KINDS.items()}, "gpt2": 4}  # two c_proj


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_a_linear_module_and_how_many_parameters_peft_trains(architecture):
    model = tiny_model(architecture)
    everything = resolve_placement(model, "all", 2)
    assert {module.kind for module in everything.modules} == KINDS[architecture]
    assert len(everything.modules) == LAYERS * PER_LAYER[architecture]
    assert not any("lm_head" in name or "embed" in name for name in everything.names)
    deep = resolve_placement(model, "deep", 3)
    assert deep.modules == tuple(m for m in everything.modules if m.layer == 3)
    assert (everything.passes, deep.passes) == ("two", "one")
    assert resolve_placement(model, "all", 0).passes == "one"

    chosen = everything.names[PER_LAYER[architecture]]  # first module of layer 1
    one = resolve_placement(model, {"modules": [chosen]}, 2)
    assert (one.names, one.passes) == ([chosen], "two")
    for placement, rank in ((deep, 3), (everything, 2), (one, 5)):
        settings = LoraSettings(rank=rank)
        peft_model = attach_for_training(tiny_model(architecture), placement, settings, "tiny", 0)
        trainable = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trainable.values()) == placement.parameters(rank)
        assert len(trainable) == 2 * len(placement.modules)
        assert all(".lora_" in name for name in trainable)


def test_widths_of_conv1d_are_not_swapped():
    found = {module.name: module for module in linear_modules(tiny_model("gpt2"))}
    fc = found["transformer.h.2.mlp.c_fc"]
    assert (fc.in_features, fc.out_features, fc.transposed) == (HIDDEN, 4 * HIDDEN, True)
    back = found["transformer.h.2.mlp.c_proj"]
    assert (back.in_features, back.out_features) == (4 * HIDDEN, HIDDEN)
    assert back.lora_parameters(3) == 3 * 5 * HIDDEN


def test_modules_are_ordered_by_layer_whatever_the_order_given():
    names = ["model.layers.3.mlp.up_proj", "model.layers.2.self_attn.v_proj"]
    placement = resolve_placement(tiny_model(), {"modules": names}, 2)
    assert placement.names == names[::-1]
    assert placement.describe() == "modules: 2 modules in layers 2-3, one-pass"
    one = resolve_placement(tiny_model(), {"modules": names[:1]}, 4)
    assert one.describe() == "modules: 1 module in layer 3, two-pass"


def test_experts_that_are_linear_modules_are_left_out():
    """Their tokens are picked out of the batch, so a mixed batch could not tell whose they are."""
    model = tiny_model()
    before = len(linear_modules(model))
    experts = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(3)])
    model.model.layers[3].mlp.experts = experts
    model.model.layers[3].mlp.shared_expert = nn.Linear(HIDDEN, HIDDEN)
    names = [module.name for module in linear_modules(model)]
    assert len(names) == before + 1
    assert names[-1] == "model.layers.3.mlp.shared_expert"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            {"modules": ["model.layers.2.mlp.down_porj"]},
            "placement.modules: no linear module 'model.layers.2.mlp.down_porj' (did you mean "
            "'model.layers.2.mlp.down_proj'?); full names look like "
            "'model.layers.3.mlp.down_proj', module kinds are down_proj, gate_proj, k_proj, "
            "o_proj, q_proj, up_proj, v_proj",
        ),
        (
            {"modules": ["q_proj"]},
            "placement.modules: 'q_proj' is not a full name; 4 modules end in it, e.g. "
            "'model.layers.3.self_attn.q_proj'",
        ),
        (
            {"modules": ["model.layers.2.mlp.up_proj", "model.layers.2.mlp.up_proj"]},
            "placement.modules names 'model.layers.2.mlp.up_proj' twice",
        ),
        ({"modules": []}, "placement.modules is empty; name at least one module"),
        ("dep", "placement 'dep' is unknown; use deep, all or modules: [full names]"),
    ],
)
def test_messages(kind, message):
    with pytest.raises(AdapterError) as caught:
        resolve_placement(tiny_model(), kind, 2)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name", ["lm_head", "model.embed_tokens", "model.layers.4.mlp.up_proj", ""]
)
def test_what_is_no_linear_module_of_a_layer_is_refused(name):
    with pytest.raises(AdapterError, match=r"^placement\.modules: "):
        resolve_placement(tiny_model(), {"modules": [name]}, 2)


def test_deep_with_nothing_above_the_router_layer():
    with pytest.raises(AdapterError, match="finds no linear module from layer 4 up"):
        resolve_placement(tiny_model(), "deep", LAYERS)


def test_a_base_without_linear_modules_is_refused():
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, nn.Identity())
    assert isinstance(model.model.layers[0].mlp.experts.gate_up_proj, torch.Tensor)
    with pytest.raises(AdapterError, match="no linear module in its decoder layers"):
        linear_modules(model)


def test_modules_that_a_fused_kernel_reads_past_are_left_out():
    model = hybrid_model()
    placement = resolve_placement(model, "deep", 2)
    assert {module.kind for module in placement.modules} == {*LLAMA, "in_proj"}
    detach(attach_for_training(model, placement, LoraSettings(4), "tiny", 0))


def test_dense_layers_that_peft_takes_for_the_experts_are_left_out():
    """PEFT would put LoRA on the 3-D experts in place of a dense layer's gate_proj."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_experts=2,
        num_experts_per_tok=1,
        mlp_only_layers=[1],
    )
    model = AutoModelForCausalLM.from_config(config)
    placement = resolve_placement(model, "all", 1)
    assert {m.kind for m in placement.modules} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    detach(attach_for_training(model, placement, LoraSettings(4), "tiny", 0))
