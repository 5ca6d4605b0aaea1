"""Energies against the norms of true gradients, and what the probe refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from asr.adapters import (
    LoraSettings,
    PageSettings,
    attach_for_training,
    linear_modules,
    page_energies,
    resolve_placement,
)
from asr.adapters.placement import LinearModule
from asr.adapters.probe import batch as page_batch
from asr.adapters.probe import hooks as page_hooks
from asr.adapters.probe import page as page_module
from asr.adapters.probe.page import expert_modules, left_out
from asr.base.fingerprint import tensors_hash
from asr.data.encode import IGNORED, EncodedExample
from asr.errors import AdapterError, DataError
from tests.adapters.probe.probing import first_token_terms, make_rows, row_loss, weight_gradients
from tests.tiny_models import ARCHITECTURES, HIDDEN, VOCAB, tiny_model

SCALES = page_module._LOSS_SCALES
DOWN = "model.layers.2.mlp.down_proj"


def double_model(architecture="llama"):
    model = tiny_model(architecture).double().requires_grad_(False)
    if architecture == "mixtral":  # its fused products stop at float32
        model.set_experts_implementation("eager")
    return model


def probe(model, rows=None, modules=None, settings=None, **options):
    return page_energies(
        model,
        make_rows() if rows is None else rows,
        linear_modules(model) if modules is None else modules,
        settings or PageSettings(),
        pad_token_id=0,
        **{"batch_size": 3, **options},
    )


def squares(gradients):
    return np.array([[g.square().sum().item() for g in row] for row in gradients])


def worst(found, expected):
    return float(np.abs(found / expected - 1).max())


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_energies_are_the_norms_of_the_true_gradients(architecture, gram, monkeypatch):
    monkeypatch.setattr(page_hooks, "gram_is_cheaper", lambda *sizes: gram)
    model, rows = double_model(architecture), make_rows()
    modules = linear_modules(model)
    found = probe(model)
    gradients = [weight_gradients(model, row, modules) for row in rows]
    others = [
        [
            g - first
            for g, first in zip(row_gradients, first_token_terms(model, row, modules), strict=True)
        ]
        for row, row_gradients in zip(rows, gradients, strict=True)
    ]
    # s^2 r / (3 d_in) with alpha 16 and rank 8
    factor = np.array([4 * 8 / (3 * module.in_features) for module in modules])
    assert found.modules == tuple(modules)
    assert found.gradient.dtype == np.float64
    assert found.gradient.shape == (len(rows), len(modules))
    assert worst(found.gradient, squares(gradients)) < 1e-11
    assert worst(found.energy, factor * squares(gradients)) < 1e-11
    assert worst(found.without_first, factor * squares(others)) < 1e-11
    assert worst(found.without_first, found.energy) > 0.1  # the first token is something


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "opt"])
@pytest.mark.parametrize("gram", [True, False])
def test_neither_padding_nor_batch_mates_change_an_energy(architecture, gram, monkeypatch):
    monkeypatch.setattr(page_hooks, "gram_is_cheaper", lambda *sizes: gram)
    model = double_model(architecture)
    alone = probe(model, batch_size=1)
    whole = probe(model, batch_size=5)
    pad = page_batch.pad_rows

    def right(rows, loss, pad_token_id, device):
        batch = pad(rows, loss, pad_token_id, device, side="right")
        assert batch.attention_mask[:, 0].all()
        return batch

    monkeypatch.setattr(page_module, "pad_rows", right)
    other_side = probe(model, batch_size=5)
    for found in (whole, other_side):
        assert worst(found.energy, alone.energy) < 1e-11
        assert worst(found.without_first, alone.without_first) < 1e-11
    # and the order of rows is theirs, not that of the batches
    rows = make_rows()
    turned = probe(model, rows[::-1], batch_size=2)
    assert worst(turned.energy[::-1], alone.energy) < 1e-11


def test_a_gram_is_shared_by_modules_that_read_the_same_input(monkeypatch):
    made = []

    class Counted(page_hooks.TokenInputs):
        def __init__(self, inputs, *args, **options):
            made.append(inputs.shape[-1])
            super().__init__(inputs, *args, **options)

    monkeypatch.setattr(page_hooks, "TokenInputs", Counted)
    probe(tiny_model(), make_rows()[:1])
    # q k v, o, gate up, down: four inputs for seven modules, in each of four layers
    assert made == [HIDDEN, HIDDEN, HIDDEN, 48] * 4


def test_the_loss_may_cover_every_token():
    model, rows = double_model(), make_rows()
    modules = linear_modules(model)
    found = probe(model, settings=PageSettings(loss="full"))
    expected = squares([weight_gradients(model, row, modules, "full") for row in rows])
    assert worst(found.gradient, expected) < 1e-11
    assert worst(probe(model).gradient, expected) > 0.5


@pytest.mark.parametrize("gram", [True, False])
def test_per_batch_it_is_the_norm_of_the_mean_gradient(gram, monkeypatch):
    monkeypatch.setattr(page_hooks, "gram_is_cheaper", lambda *sizes: gram)
    model, rows = double_model("gpt2"), make_rows()
    modules = linear_modules(model)
    found = probe(model, settings=PageSettings(per="batch"))  # 3 rows and 2, in the order given
    gradients = [weight_gradients(model, row, modules) for row in rows]
    firsts = [first_token_terms(model, row, modules) for row in rows]

    def norms(lists):
        groups = (lists[:3], lists[3:])
        return squares([[sum(gs) / len(gs) for gs in zip(*group, strict=True)] for group in groups])

    factor = np.array([4 * 8 / (3 * module.in_features) for module in modules])
    others = [
        [g - f for g, f in zip(*pair, strict=True)] for pair in zip(gradients, firsts, strict=True)
    ]
    assert found.energy.shape == (2, len(modules))
    assert worst(found.gradient, norms(gradients)) < 1e-11
    assert worst(found.without_first, factor * norms(others)) < 1e-11


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        (LoraSettings(rank=8, alpha=16), lambda width: 4 * 8 / (3 * width)),
        (LoraSettings(rank=4, alpha=2, use_rslora=True), lambda width: 1 * 4 / (3 * width)),
        (LoraSettings(rank=8, alpha=16, init_lora_weights="gaussian"), lambda width: 4 / 8),
        (LoraSettings(rank=8, alpha=16, init_lora_weights="orthogonal"), lambda width: 4 * 0.08),
    ],
)
def test_closed_forms(settings, factor):
    model = double_model()
    found = probe(model, settings=PageSettings(settings))
    expected = np.array([factor(module.in_features) for module in found.modules])
    assert np.allclose(found.energy / found.gradient, expected, rtol=1e-13)


def test_the_model_comes_back_as_it_was():
    model = tiny_model("opt")
    model.train()
    model.model.decoder.layers[1].fc1.eval()
    model.model.decoder.layers[0].fc2.weight.requires_grad_(False)
    frozen = tensors_hash(model)
    state = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()

    def as_it_was():
        return (
            tensors_hash(model) == frozen
            and [(m.training, len(m._forward_hooks)) for m in model.modules()] == state
            and [p.requires_grad for p in model.parameters()] == trainable
            and all(p.grad is None for p in model.parameters())
            and torch.equal(torch.get_rng_state(), random)
        )

    with torch.no_grad():
        first = probe(model, settings=PageSettings(LoraSettings(4, init_lora_weights="pissa")))
    assert as_it_was()
    assert np.array_equal(
        first.energy,
        probe(model, settings=PageSettings(LoraSettings(4, init_lora_weights="pissa"))).energy,
    )  # dropout is off

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(model, progress=stop)
    assert as_it_was()


def test_progress_counts_rows():
    calls = []
    probe(tiny_model(), batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [(2, 5), (4, 5), (5, 5)]


# -- precision -------------------------------------------------------------------------------------


def long_rows():
    return make_rows(((280, 20), (260, 9), (280, 40)), seed=3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_bfloat16_products_are_within_two_percent_of_float32_ones(architecture):
    model = tiny_model(architecture).bfloat16()
    quick, exact = (probe(model, long_rows(), exact=exact) for exact in (False, True))
    assert not np.array_equal(quick.energy, exact.energy)
    assert worst(quick.energy, exact.energy) < 0.02
    assert worst(quick.energy.mean(0), exact.energy.mean(0)) < 0.01
    assert worst(quick.without_first, exact.without_first) < 0.02


def test_float16_gradients_neither_vanish_nor_overflow(monkeypatch):
    whole = probe(tiny_model()).energy.mean(0)

    def half(*scales):
        monkeypatch.setattr(page_module, "_LOSS_SCALES", scales)
        return probe(tiny_model().half()).energy.mean(0)

    assert worst(half(*SCALES), whole) < 0.1
    assert np.allclose(half(2.0**40, 2.0**4), half(2.0**4), rtol=1e-12)  # the first overflows
    assert worst(half(2.0**-26), whole) > 0.5  # too small for float16: they would vanish
    monkeypatch.setattr(page_module, "_LOSS_SCALES", (2.0**40,))
    with pytest.raises(AdapterError) as caught:
        probe(tiny_model().half())
    assert str(caught.value) == (
        "the gradient at 'model.layers.3.mlp.down_proj' is not finite for rows.jsonl:3; load the "
        "base in float32 or bfloat16, or leave that sample out"
    )


def test_product_types():
    found = {
        (dtype, exact): page_hooks.product_type(dtype, exact)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
        for exact in (False, True)
    }
    assert found == {
        (torch.bfloat16, False): torch.bfloat16,
        (torch.bfloat16, True): torch.float32,
        (torch.float16, False): torch.float32,
        (torch.float16, True): torch.float32,
        (torch.float32, False): torch.float32,
        (torch.float32, True): torch.float32,
        (torch.float64, False): torch.float64,
        (torch.float64, True): torch.float64,
    }


# -- experts ---------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Top-1 of three experts, each a pair of linear modules: tokens are picked out of the batch."""

    def __init__(self):
        super().__init__()
        self.router = nn.Parameter(torch.randn(HIDDEN, 3))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN, 20), nn.Tanh(), nn.Linear(20, HIDDEN)) for _ in range(3)
        )

    def forward(self, hidden):
        flat = hidden.reshape(-1, HIDDEN)
        chosen = (flat @ self.router).argmax(dim=1)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            picked = (chosen == index).nonzero().squeeze(1)
            if len(picked):
                out = out.index_add(0, picked, expert(flat[picked]))
        return out.reshape(hidden.shape)


def model_with_experts():
    model = tiny_model()
    torch.manual_seed(1)
    for layer in model.model.layers[:2]:
        layer.mlp = Experts()
    return model.double().requires_grad_(False)


def test_linear_experts_one_row_at_a_time():
    model, rows = model_with_experts(), make_rows()
    experts = expert_modules(model)
    assert [module.name for module in experts[:2]] == [
        "model.layers.0.mlp.experts.0.0",
        "model.layers.0.mlp.experts.0.2",
    ]
    assert len(experts) == 12
    assert not set(experts) & set(linear_modules(model))
    modules = [*linear_modules(model), *experts]
    found = probe(model, rows, modules, batch_size=4)
    expected = np.zeros_like(found.gradient)
    weights = [model.get_submodule(module.name).weight.requires_grad_(True) for module in modules]
    for index, row in enumerate(rows):
        gradients = torch.autograd.grad(row_loss(model, row), weights, allow_unused=True)
        for place, gradient in enumerate(gradients):
            expected[index, place] = 0.0 if gradient is None else gradient.square().sum()
    assert np.allclose(found.gradient, expected, rtol=1e-11, atol=0)
    assert (expected[:, -12:] == 0).any()  # an expert without a token in some row
    assert (expected[:, -12:] > 0).sum() > 20
    reached = expected[:, -12:] > 0
    assert np.isnan(found.without_first[:, -12:][reached]).all()
    assert np.isfinite(found.without_first[:, :-12]).all()


def test_what_is_left_out_is_said():
    assert left_out(tiny_model()) == []
    assert left_out(tiny_model("mixtral")) == [
        "experts: 3-D parameters of MixtralExperts; a LoRA needs linear modules (4 layers)"
    ]
    assert left_out(model_with_experts()) == [
        "experts: linear modules that see tokens picked out of the batch; no adapter can sit on "
        "them (2 layers)"
    ]


# -- what is refused -------------------------------------------------------------------------------


def message(call, error=AdapterError):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_what_cannot_be_asked():
    model = tiny_model()
    assert message(lambda: probe(model, settings=PageSettings(per="samples"))) == (
        "unknown per 'samples' (did you mean 'sample'?); there are: batch, sample"
    )
    assert message(lambda: probe(model, settings=PageSettings(loss="answers"))) == (
        "unknown loss 'answers' (did you mean 'answer'?); there are: answer, full"
    )
    for alpha, scale in ((1e-40, "1.25e-41"), (8e200, "1e+200")):
        huge = PageSettings(LoraSettings(rank=8, alpha=alpha))
        assert message(lambda: probe(model, settings=huge)) == (  # noqa: B023  # called at once
            f"alpha is {alpha:g}, so that the update is scaled by {alpha:g} / 8 = {scale}; the "
            "probe takes 1e-30 to 1e+30"
        )
    assert message(lambda: probe(model, batch_size=0)) == "batch_size is 0; it must be at least 1"
    assert message(lambda: probe(model, modules=[])) == (
        "there are no modules to probe; give at least one"
    )
    start = LoraSettings(init_lora_weights="loftq")
    assert message(lambda: probe(model, settings=PageSettings(start))).startswith(
        "init_lora_weights loftq is refused: "
    )
    wrong = LinearModule("model.layers.2.mlp.down_porj", 2, 48, HIDDEN)
    assert message(lambda: probe(model, modules=[wrong])) == (
        "no linear module 'model.layers.2.mlp.down_porj' in the base (did you mean "
        "'model.layers.2.mlp.down_proj'?)"
    )
    batch = PageSettings(per="batch")
    experts = model_with_experts()
    assert message(lambda: probe(experts, modules=expert_modules(experts), settings=batch)) == (
        "experts see tokens picked out of the batch; probe them per sample, or with batch_size 1"
    )
    attach_for_training(model, resolve_placement(model, "deep", 2), LoraSettings(2), "tiny", 0)
    assert message(lambda: probe(model, modules=[wrong])) == (
        "the base carries an adapter; detach it before probing"
    )


def test_rows_without_a_target():
    model = tiny_model()
    unlabelled = EncodedExample([7, 8, 9], [IGNORED] * 3, "rows.jsonl:8")
    only_first = EncodedExample([7, 8, 9], [7, IGNORED, IGNORED], "rows.jsonl:9")
    single = EncodedExample([7], [7], "rows.jsonl:10")
    assert message(lambda: probe(model, []), DataError) == (
        "there are no rows to probe with; give at least one"
    )
    rows = [*make_rows(), unlabelled, only_first]
    assert message(lambda: probe(model, rows), DataError) == (
        "rows.jsonl:8 (and 1 more): the row has no answer token, so there is no loss to take a "
        "gradient of; leave it out"
    )
    full = PageSettings(loss="full")
    assert probe(model, rows, settings=full).energy.shape == (7, 28)
    assert message(lambda: probe(model, [single], settings=full), DataError) == (
        "rows.jsonl:10: the row has no token after the first, so there is no loss to take a "
        "gradient of; leave it out"
    )


def test_a_loss_that_is_not_finite_names_module_and_sample():
    model, rows = tiny_model(), make_rows()
    used = {token for row in rows for token in row.input_ids}
    broken = next(token for token in range(5, VOCAB) if token not in used)
    rows[3].input_ids[2] = broken
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = math.inf
    assert message(lambda: probe(model, rows)) == (
        "the loss of rows.jsonl:4 is nan: 'model.layers.0.self_attn.q_proj' is the first module "
        "with an output that is not finite; load the base in float32 or bfloat16, or take another "
        "copy of it"
    )
    other = tiny_model()
    with torch.no_grad():
        other.get_submodule(DOWN).weight[3, 4] = math.nan
    assert message(lambda: probe(other)) == (
        f"the loss of rows.jsonl:3 is nan: '{DOWN}' is the first module with an output that is not "
        "finite; load the base in float32 or bfloat16, or take another copy of it"
    )
    assert not any(module._forward_hooks for module in other.modules())
    head = tiny_model()
    with torch.no_grad():
        head.get_output_embeddings().weight[7, 4] = math.inf
    assert message(lambda: probe(head)) == (
        "the loss of rows.jsonl:3 is nan: the outputs of all modules are finite, those of the "
        "final norm or the head are not; load the base in float32 or bfloat16, or take another "
        "copy of it"
    )


class Cut(nn.Module):
    def forward(self, hidden):
        return nn.functional.silu(hidden.detach())


class Blocked(nn.Linear):
    """A linear module as kernels without a backward pass are."""

    def forward(self, hidden):
        with torch.no_grad():
            return super().forward(hidden)


def test_a_module_that_passes_no_gradient_is_named():
    model = tiny_model()
    model.model.layers[2].mlp.down_proj = Blocked(48, HIDDEN, bias=False)
    assert message(lambda: probe(model)) == (
        f"gradients do not flow through '{DOWN}' (Blocked), and PAGE needs them; load the base in "
        "float32, bfloat16 or float16, or with quantisation int8 or nf4 (bitsandbytes)"
    )
    # a module whose output somebody else cuts off
    cut = tiny_model()
    cut.model.layers[2].mlp.act_fn = Cut()
    assert message(lambda: probe(cut)).startswith(
        "gradients do not flow through 'model.layers.2.mlp.gate_proj' (Linear), and PAGE needs "
    )
    for probed in (model, cut):
        assert not any(module._forward_hooks for module in probed.modules())


class ForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden):
        return hidden * 1.0


class NoDerivative(nn.Module):
    def forward(self, hidden):
        return ForwardOnly.apply(hidden)


def test_a_missing_derivative_is_said():
    model = tiny_model()
    model.model.layers[2].mlp.act_fn = NoDerivative()
    assert message(lambda: probe(model)) == (
        "gradients do not flow through the base (You must implement either the backward or vjp "
        "method for your custom autograd.Function to use it with backward mode AD.), and PAGE "
        "needs them; load the base in float32, bfloat16 or float16, or with quantisation int8 or "
        "nf4 (bitsandbytes)"
    )


def test_a_module_that_runs_twice_is_refused():
    model = tiny_model()
    model.model.layers[3].mlp.up_proj = model.model.layers[3].mlp.gate_proj
    modules = [m for m in linear_modules(tiny_model()) if m.kind == "gate_proj"]
    assert message(lambda: probe(model, modules=modules)) == (
        "'model.layers.3.mlp.gate_proj' runs twice in one forward pass, so its energies would mix; "
        "leave it out"
    )
