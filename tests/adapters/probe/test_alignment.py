"""PLoP's score against its definition, one row at a time, with the weights themselves."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asr.adapters import linear_modules
from asr.adapters.probe.alignment import alignment_scores
from asr.base.load import load_base
from asr.errors import AdapterError
from tests.adapters.probe.probing import make_rows
from tests.tiny_models import tiny_model
from tests.wide_models import save_wide_base

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)


@torch.no_grad()
def by_definition(model: Any, rows: list[Any], modules: list[Any]) -> list[float]:
    """NFN from W z in float64; rows run alone, so that there is no padding."""
    inputs: dict[str, list[torch.Tensor]] = {module.name: [] for module in modules}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].flatten(0, -2).double())
        )
        for name, seen in inputs.items()
    ]
    for row in rows:
        model(input_ids=torch.tensor([row.input_ids]))
    for handle in handles:
        handle.remove()
    scores = []
    for module in modules:
        z = torch.cat(inputs[module.name])  # (tokens, d_in)
        weight = model.get_submodule(module.name).weight.double()
        image = z @ (weight if module.transposed else weight.T)
        baseline = weight.norm() * z.norm(dim=-1) / math.sqrt(module.in_features)
        scores.append(float(image.norm(dim=-1).mean() / baseline.mean()))
    return scores


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "mixtral"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_definition_is_met_whatever_the_padding(architecture: str, batch_size: int) -> None:
    model, rows = tiny_model(architecture), make_rows()
    for module in model.modules():  # biases start at zero, and would go unnoticed
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, std=0.5)
    modules = linear_modules(model)
    found = alignment_scores(model, rows, modules, pad_token_id=0, batch_size=batch_size)
    np.testing.assert_allclose(found, by_definition(model, rows, modules), rtol=2e-5)


def test_the_baseline_is_what_random_directions_give() -> None:
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.randn(20_000, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = 3 * u / u.norm(dim=-1, keepdim=True)
    drawn = float((u @ weight.T).square().sum(dim=-1).mean().sqrt())
    assert drawn == pytest.approx(float(weight.norm()) * 3 / math.sqrt(48), rel=5e-3)


def test_a_weight_made_of_the_data_is_aligned() -> None:
    model, rows = tiny_model(), make_rows()
    modules = linear_modules(model)
    q = model.get_submodule(modules[0].name)
    seen: list[torch.Tensor] = []
    handle = q.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]))
        handle.remove()
        before = alignment_scores(model, rows, modules[:1], pad_token_id=0)[0]
        _, _, directions = torch.linalg.svd(torch.cat(seen))
        q.weight.copy_(directions[:1].T @ directions[:1])  # onto the data's first direction
        after = alignment_scores(model, rows, modules[:1], pad_token_id=0)[0]
    assert before is not None
    assert after is not None
    assert after > 1.3 > 1.2 > before


def test_modules_that_see_other_tokens_or_zeros_have_no_score() -> None:
    model = tiny_model()

    class Picks(nn.Module):
        """Hands every other token on, as a router in front of experts does."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            flat = z.reshape(-1, z.shape[-1])
            out = torch.zeros(len(flat), self.inner.out_features)
            out[::2] = self.inner(flat[::2])
            return out.reshape(*z.shape[:-1], -1)

    layer = model.model.layers[1]
    layer.mlp.up_proj = Picks(layer.mlp.up_proj)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.zero_()  # so that down_proj sees zeros
    modules = linear_modules(model)
    scores = alignment_scores(model, make_rows(), modules, pad_token_id=0)
    none = {m.name for m, score in zip(modules, scores, strict=True) if score is None}
    zero = "model.layers.3.mlp."
    assert none == {"model.layers.1.mlp.up_proj.inner", zero + "up_proj", zero + "down_proj"}


def test_the_model_comes_back_as_it_was_after_an_exception_too() -> None:
    model = tiny_model()
    modules = linear_modules(model)
    model.model.layers[2].train()
    flags = [module.training for module in model.modules()]

    def stop(done: int, total: int) -> None:
        assert not any(module.training for module in model.modules())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alignment_scores(model, make_rows(), modules, pad_token_id=0, progress=stop)
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())


def test_progress_counts_rows() -> None:
    model, calls = tiny_model(), []
    alignment_scores(
        model,
        make_rows(),
        linear_modules(model)[:1],
        pad_token_id=0,
        batch_size=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_what_is_not_finite_is_named() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("inf")
    with pytest.raises(AdapterError) as caught:
        alignment_scores(model, make_rows(), linear_modules(model), pad_token_id=0)
    assert str(caught.value) == (
        "PLoP's alignment of 'model.layers.1.self_attn.v_proj' is not finite: its inputs or "
        "outputs overflow; use dtype float32 or bfloat16"
    )


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [([], 2, "no rows to align with"), (None, 0, "batch_size is 0, it must be at least 1")],
)
def test_wrong_calls(rows: list[Any] | None, size: int, message: str) -> None:
    model = tiny_model()
    given = make_rows() if rows is None else rows
    with pytest.raises(ValueError, match=message):
        alignment_scores(model, given, linear_modules(model), pad_token_id=0, batch_size=size)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_weights_are_unpacked(tmp_path: Path, kind: Any) -> None:
    folder = str(save_wide_base(tmp_path))
    whole = load_base(folder, device="cpu", dtype="float32").model
    packed = load_base(folder, device="cpu", dtype="float32", quantisation=kind).model
    rows, modules = make_rows(), linear_modules(whole)
    expected = alignment_scores(whole, rows, modules, pad_token_id=0)
    weights = [packed.get_submodule(module.name).weight for module in modules]
    found = alignment_scores(packed, rows, linear_modules(packed), pad_token_id=0)
    np.testing.assert_allclose(found, expected, rtol=0.1)
    # a second time, the base having run: where 8-bit weights keep their scales has changed
    assert alignment_scores(packed, rows, linear_modules(packed), pad_token_id=0) == found
    assert all(
        packed.get_submodule(module.name).weight is weight
        for module, weight in zip(modules, weights, strict=True)
    )
