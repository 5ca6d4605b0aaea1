"""Two passes give the plain model's states, logits and decoding, on every architecture."""

from __future__ import annotations

import pytest
import torch

from asr.base.split import position_ids_of
from asr.base.whole import WholeForward
from asr.errors import SplitUnsupportedError
from tests.tiny_models import ARCHITECTURES, VOCAB, tiny_model


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
