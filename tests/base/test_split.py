"""The split forward equals the plain one, bit for bit, on every architecture."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, MambaConfig, MambaForCausalLM

from asr.base.split import SplitForward, position_ids_of
from asr.base.whole import WholeForward
from asr.errors import BaseModelError, SplitUnsupportedError
from tests.tiny_models import ARCHITECTURES, LAYERS, VOCAB, hybrid_model, tiny_model

LENGTH = 13  # longer than the sliding window of the tiny Mistral and Gemma 3 (8)
ROUTER_LAYER = 2


def batch(padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 13, 9 and 5 tokens, padded ``left`` or ``right``; ``none``: all 13 long."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCAB, (3, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate([13, 9, 5]):
        if padding == "left":
            mask[row, : LENGTH - length] = 0
        elif padding == "right":
            mask[row, length:] = 0
    return ids.where(mask.bool(), torch.zeros_like(ids)), mask


def plain(model, ids, mask, cache, start=0):
    with torch.no_grad():
        return model(
            input_ids=ids[:, start:],
            attention_mask=mask,
            position_ids=position_ids_of(mask)[:, start:],
            past_key_values=cache,
            use_cache=True,
        ).logits


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bit_equal_to_the_plain_forward_and_through_decode(architecture, padding):
    model = tiny_model(architecture)
    split = SplitForward(model, ROUTER_LAYER)
    ids, mask = batch(padding)
    expected_cache = split.new_cache()
    expected = plain(model, ids, mask, expected_cache)
    state = split.prefix(ids, mask)
    assert state.hidden.shape == (3, LENGTH, model.config.hidden_size)
    logits = split.suffix(state, logits_to_keep=0)
    assert torch.equal(logits[mask.bool()], expected[mask.bool()])

    token = torch.tensor([[7], [8], [9]])
    for _ in range(3):
        ids = torch.cat([ids, token], dim=1)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        want = plain(model, ids, mask, expected_cache, start=ids.shape[1] - 1)
        got = plain(model, ids, mask, state.cache, start=ids.shape[1] - 1)
        assert torch.equal(got, want)
        token = want[:, -1].argmax(-1, keepdim=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_those_entering_the_router_layer(architecture):
    model = tiny_model(architecture)
    split = SplitForward(model, ROUTER_LAYER)
    ids, mask = batch("left")
    with torch.no_grad():
        states = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids_of(mask),
            output_hidden_states=True,
        ).hidden_states
    hidden = split.prefix(ids, mask).hidden
    real = mask.bool()
    torch.testing.assert_close(hidden[real], states[ROUTER_LAYER][real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunked_halves_equal_a_plain_forward_in_the_same_chunks(architecture, padding):
    model = tiny_model(architecture)
    split = SplitForward(model, ROUTER_LAYER)
    ids, mask = batch(padding)
    cache = split.new_cache()
    for start, end in ((0, 5), (5, 10), (10, LENGTH)):
        expected = plain(model, ids[:, :end], mask[:, :end], cache, start=start)
    state = split.prefix(ids, mask, chunk=5)
    logits = split.suffix(state, logits_to_keep=2, chunk=5)
    assert torch.equal(logits, expected[:, -2:])
    whole = plain(model, ids, mask, split.new_cache())
    torch.testing.assert_close(logits, whole[:, -2:], rtol=1e-4, atol=1e-4)


def test_chunked_suffix_refuses_logits_beyond_its_last_chunk():
    split = SplitForward(tiny_model(), ROUTER_LAYER)
    state = split.prefix(*batch("none"), chunk=5)
    with pytest.raises(ValueError, match="reaches beyond the last chunk"):
        split.suffix(state, logits_to_keep=4, chunk=5)


def test_adapters_inside_the_layers_act_in_the_suffix_only_from_their_layer_up():
    model = tiny_model()
    split = SplitForward(model, ROUTER_LAYER)
    ids, mask = batch("left")
    base_hidden = split.prefix(ids, mask).hidden
    targets = [f"model.layers.{i}.mlp.down_proj" for i in range(ROUTER_LAYER, LAYERS)]
    peft_model = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    ).eval()
    expected = plain(peft_model, ids, mask, split.new_cache())
    state = split.prefix(ids, mask)
    assert torch.equal(state.hidden, base_hidden)
    assert torch.equal(split.suffix(state, 0)[mask.bool()], expected[mask.bool()])
    restored = peft_model.unload()
    without = plain(restored, ids, mask, split.new_cache())
    assert not torch.allclose(without[mask.bool()], expected[mask.bool()])


def test_selected_rows_go_on_alone():
    model = tiny_model("gemma3")
    split = SplitForward(model, ROUTER_LAYER)
    ids, mask = batch("left")
    state = split.prefix(ids, mask)
    part = state.select(torch.tensor([2, 0]))
    whole = split.suffix(state, 1)
    torch.testing.assert_close(split.suffix(part, 1), whole[[2, 0]], rtol=1e-5, atol=1e-5)


def test_views_share_the_weights_and_leave_the_model_as_it_was():
    model = tiny_model()
    before = [id(module) for module in model.modules()]
    split = SplitForward(model, ROUTER_LAYER)
    split.suffix(split.prefix(*batch("left")))
    assert [id(module) for module in model.modules()] == before
    assert split._suffix_model.lm_head.weight is model.lm_head.weight


@pytest.mark.parametrize("layer", [0, LAYERS, 99])
def test_a_layer_outside_the_model_is_refused(layer):
    with pytest.raises(SplitUnsupportedError) as caught:
        SplitForward(tiny_model(), layer)
    assert str(caught.value) == (
        f"router layer {layer} is outside LlamaForCausalLM, which has 4 decoder layers; "
        "give router.layer a value from 1 to 3"
    )


def test_recurrent_models_are_refused():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, state_size=4)
    with pytest.raises(SplitUnsupportedError) as caught:
        SplitForward(MambaForCausalLM(config), ROUTER_LAYER)
    assert str(caught.value) == (
        "MambaForCausalLM cannot be split at layer 2: its layers keep recurrent states, and no "
        "keys and values; use a base with attention layers"
    )


def test_layers_with_recurrent_states_beside_keys_and_values_are_offered_two_passes():
    """The states of selected rows would be those of all rows."""
    with pytest.raises(SplitUnsupportedError) as caught:
        SplitForward(hybrid_model(), ROUTER_LAYER)
    assert str(caught.value) == (
        "FalconH1ForCausalLM cannot be split at layer 2: its layers keep recurrent states; set "
        "router.two_pass=true to route in a pass of its own"
    )


def test_states_that_are_no_vector_per_token_are_refused_for_good():
    """Gemma 3n hands several versions of each token from layer to layer: (2, b, t, d)."""
    config = Gemma3nTextConfig(
        vocab_size=VOCAB,
        vocab_size_per_layer_input=VOCAB,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        num_hidden_layers=LAYERS,
        num_kv_shared_layers=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=None,
    )
    model = Gemma3nForCausalLM(config).eval()
    for forward in (SplitForward, partial(WholeForward, check=True)):
        with pytest.raises(BaseModelError) as caught:
            forward(model, ROUTER_LAYER)
        assert str(caught.value) == (
            "Gemma3nForCausalLM hands states of 4 dimensions from layer to layer; routing needs "
            "one vector per token, use another base"
        )


def test_an_architecture_whose_layers_look_back_is_refused():
    model = tiny_model()

    class LooksBack(torch.nn.Module):
        """Adds what the first layer saw: something that no suffix can know."""

        def __init__(self, inner, memory):
            super().__init__()
            self.inner, self.memory = inner, memory

        def forward(self, hidden_states, *args, **kwargs):
            if not self.memory:
                self.memory.append(hidden_states)
            else:
                hidden_states = hidden_states + self.memory.pop()[:, -hidden_states.shape[1] :] * 2
            return self.inner(hidden_states, *args, **kwargs)

    memory: list[torch.Tensor] = []
    model.model.layers[0] = LooksBack(model.model.layers[0], memory)
    model.model.layers[3] = LooksBack(model.model.layers[3], memory)
    SplitForward(model, ROUTER_LAYER)  # hidden state passes through memory in order: still equal
    model.model.layers[3].memory = [torch.ones(2, 6, 32)]
    with pytest.raises(SplitUnsupportedError, match="the split forward differs from the plain one"):
        SplitForward(model, ROUTER_LAYER)


def test_a_damaged_base_is_named_as_what_it_is() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(BaseModelError, match="answers plain tokens with NaN in float32: its weigh"):
        SplitForward(model, ROUTER_LAYER)
