"""Decoder layers are found in every architecture, wrapped or not, or refused by name."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Qwen3MoeConfig,
    T5Config,
)

from asr.base.layers import decoder_layers, default_router_layer
from asr.errors import BaseModelError
from tests.tiny_models import ARCHITECTURES, HIDDEN, LAYERS, tiny_model

PATHS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_layers_are_found(architecture: str) -> None:
    model = tiny_model(architecture)
    layers = decoder_layers(model)
    assert layers.path == PATHS.get(architecture, "model.layers")
    assert layers.modules is model.get_submodule(layers.path)
    assert len(layers.modules) == LAYERS


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_layers_are_found_under_peft(architecture: str) -> None:
    model = tiny_model(architecture)
    bare = decoder_layers(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    layers = decoder_layers(wrapped)
    assert layers.path == f"base_model.model.{bare.path}"
    assert layers.modules is bare.modules


def test_an_expert_list_as_long_as_the_layers_is_not_mistaken() -> None:
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    assert decoder_layers(AutoModelForCausalLM.from_config(config)).path == "model.layers"


def test_a_second_tower_of_the_same_depth_is_told_apart_by_the_decoder() -> None:
    model = tiny_model("llama")
    model.vision = tiny_model("gpt2")
    assert decoder_layers(model).path == "model.layers"


def test_two_candidates_inside_the_decoder_are_refused() -> None:
    model = tiny_model("llama")
    model.model.more = tiny_model("gpt2").transformer.h
    with pytest.raises(BaseModelError, match=r"'llama' .*candidates: model\.layers, model\.more"):
        decoder_layers(model)


def test_a_truncated_model_is_refused() -> None:
    model = tiny_model("llama")
    del model.model.layers[-1]
    with pytest.raises(BaseModelError, match="the 4 decoder layers of architecture 'llama'"):
        decoder_layers(model)


def test_a_list_without_attention_does_not_count() -> None:
    model = tiny_model("llama")
    model.model.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(LAYERS))
    assert decoder_layers(model).path == "model.layers"


def test_encoder_decoders_are_refused_by_name() -> None:
    config = T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, vocab_size=64)
    with pytest.raises(BaseModelError, match=r"'t5' .* is an encoder-decoder"):
        decoder_layers(AutoModelForSeq2SeqLM.from_config(config))


def test_a_module_without_a_config_is_refused() -> None:
    with pytest.raises(BaseModelError, match="Linear has no Hugging Face config"):
        decoder_layers(nn.Linear(2, 2))


def test_the_layers_are_the_ones_that_run() -> None:
    model = tiny_model("llama")
    ran: list[int] = []
    for index, layer in enumerate(decoder_layers(model).modules):
        layer.register_forward_pre_hook(lambda _module, _args, index=index: ran.append(index))
    states = model(torch.arange(6)[None], output_hidden_states=True).hidden_states
    assert ran == list(range(LAYERS))
    assert states[0].shape == (1, 6, HIDDEN)


@pytest.mark.parametrize(
    ("layers", "expected"), [(30, 8), (32, 8), (28, 7), (12, 3), (4, 2), (3, 2), (80, 20)]
)
def test_default_router_layer(layers: int, expected: int) -> None:
    assert default_router_layer(layers) == expected


def test_no_router_layer_in_a_shallow_base() -> None:
    with pytest.raises(BaseModelError, match="2 layers is too shallow"):
        default_router_layer(2)
