"""Two passes give the plain model's states, logits and decoding, on every architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from asr.base.split import position_ids_of
from asr.base.whole import WholeForward
from asr.errors import BaseModelError, SplitUnsupportedError
from asr.model.generation import decode
from tests.tiny_models import ARCHITECTURES, VOCAB, hybrid_model, tiny_model


def batch():
    ids = torch.randint(5, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_states_logits_and_the_cache_to_go_on_from(architecture):
    model = tiny_model(architecture)
    ids, mask = batch()
    whole = WholeForward(model, 2)
    plain = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids_of(mask),
        output_hidden_states=True,
    )
    state = whole.prefix(ids, mask)
    real = mask.bool()
    torch.testing.assert_close(
        state.hidden[real], plain.hidden_states[2][real], rtol=1e-5, atol=1e-5
    )
    assert state.cache is None
    assert not any(module._forward_pre_hooks for module in model.modules())

    part = state.select(torch.tensor([1]))
    torch.testing.assert_close(whole.suffix(part, 1), plain.logits[1:, -1:], rtol=1e-4, atol=1e-4)
    logits = whole.suffix(state, 0)
    torch.testing.assert_close(logits[real], plain.logits[real], rtol=1e-4, atol=1e-4)
    assert whole.suffix(state, 3).shape[1] == 3
    whole.suffix(state, 1)
    token = torch.tensor([[7], [8]])
    longer = torch.cat([mask, torch.ones_like(token)], dim=1)
    step = model(
        input_ids=token,
        attention_mask=longer,
        position_ids=mask.sum(1, keepdim=True),
        past_key_values=state.cache,
        use_cache=True,
    ).logits
    full = model(
        input_ids=torch.cat([ids, token], dim=1),
        attention_mask=longer,
        position_ids=position_ids_of(longer),
    ).logits
    torch.testing.assert_close(step[:, -1], full[:, -1], rtol=1e-4, atol=1e-4)


def test_the_hook_is_gone_after_a_forward_that_raises():
    model = tiny_model()
    whole = WholeForward(model, 2)
    handle = model.model.layers[3].register_forward_pre_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        whole.prefix(*batch())
    handle.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_a_cache_is_refused(monkeypatch):
    model = tiny_model()
    whole = WholeForward(model, 2)
    state = whole.prefix(*batch())
    forward = model.forward

    def no_cache(**kwargs):
        return forward(**{**kwargs, "use_cache": False})

    monkeypatch.setattr("asr.base.whole.accepts_logits_to_keep", lambda model: False)
    monkeypatch.setattr(model, "forward", no_cache)
    with pytest.raises(SplitUnsupportedError, match="LlamaForCausalLM returns no key-value cache"):
        whole.suffix(state)


def test_the_check_refuses_what_two_passes_cannot_serve_either():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, state_size=4)
    with pytest.raises(SplitUnsupportedError, match="use a base with attention layers"):
        WholeForward(MambaForCausalLM(config), 2, check=True)
    model = tiny_model()
    model.model.layers[3].forward = lambda hidden: hidden  # takes nothing else
    with pytest.raises(BaseModelError) as caught:
        WholeForward(model, 2, check=True)
    assert str(caught.value).startswith("LlamaForCausalLM cannot answer in two passes: TypeError: ")
    assert str(caught.value).endswith("; use another base")
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_rows_of_a_base_with_recurrent_states_end_one_after_another():
    """Its rows cannot leave the batch: all stay, and each answers as if it were alone."""
    model = hybrid_model()
    whole = WholeForward(model, 2, check=True)
    ids, mask = batch()

    def answers(ids, mask, end):
        state = whole.prefix(ids, mask)
        config = GenerationConfig(max_new_tokens=6, eos_token_id=end, pad_token_id=0)
        left: list[list[int]] = []
        return decode(model, state, lambda: whole.suffix(state), config, None, left.append), left

    free, _ = answers(ids, mask, 1)
    end = next(token for token in free[0] if token not in free[1])
    tokens, left = answers(ids, mask, end)
    assert tokens == [free[0][: free[0].index(end) + 1], free[1]]
    assert left == []
    assert tokens[1] == answers(ids[1:, 4:], mask[1:, 4:], end)[0][0]
