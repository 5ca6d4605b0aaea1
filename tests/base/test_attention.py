"""cuDNN's attention is off where gradients are made, and back as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import asr
from asr.adapters import PageSettings, linear_modules, page_energies
from asr.base.attention import finite_gradients
from asr.train.events import Watcher
from tests.adapters.probe.probing import make_rows
from tests.routed import trained
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("before", [True, False])
def test_the_switch_comes_back_also_after_an_error(before):
    found = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(before)
        with pytest.raises(KeyError), finite_gradients():
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise KeyError
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(found)


def test_training_runs_within_it(tmp_path):
    """Its rows are padded on the left: their padding sees no key."""
    seen = []

    class Looks(Watcher):
        def step(self, step, steps, loss):
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())

    before = torch.backends.cuda.cudnn_sdp_enabled()
    config = asr.load_config(trained() / "c.yaml")
    asr.train_sequence(config, tmp_path / "model", watcher=Looks())
    assert seen and not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() is before


def test_the_probe_runs_within_it():
    seen, model = [], tiny_model()
    handle = model.register_forward_hook(
        lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    page_energies(model, make_rows(), linear_modules(model), PageSettings(), pad_token_id=0)
    handle.remove()
    assert seen and not any(seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_that_see_nothing_have_finite_gradients():
    shape = (2, 9, 64, 64)
    query, key, value = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    mask = torch.ones(64, 64, dtype=torch.bool, device="cuda").tril()[None, None].repeat(2, 1, 1, 1)
    mask[0, :, :, :20] = False
    with finite_gradients():
        scaled_dot_product_attention(query, key, value, attn_mask=mask)[0, :, 20:].sum().backward()
    assert query.grad.isfinite().all()
