"""Norms of D^T Z without D^T Z: both forms, with padding, with and without the first token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.adapters.probe.ghost_norm import TokenInputs, Tokens, gram_is_cheaper

SIZES = st.integers(1, 9)


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def true_norms(z, d, counts):
    """||sum_t d_t z_t^T||^2 over the tokens that count, by the gradient itself."""
    kept = counts.unsqueeze(-1).to(z.dtype)
    return torch.einsum("nto,nti->noi", d * kept, z).square().sum((1, 2))


def masks(samples, tokens, padding, side):
    """(n, t) mask with ``padding`` pads on row 0, one fewer on each next; at least 1 real token."""
    mask = torch.ones(samples, tokens, dtype=torch.long)
    for row in range(samples):
        pads = max(0, min(padding - row, tokens - 1))
        mask[row, slice(0, pads) if side == "left" else slice(tokens - pads, tokens)] = 0
    return mask


def without_first(mask):
    counts = mask.bool()
    for row in counts:
        row[int(row.int().argmax())] = False
    return counts


@given(SIZES, st.integers(1, 300), SIZES, SIZES, st.integers(0, 60), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_identity(samples, tokens, inputs, outputs, padding, gram, left):
    mask = masks(samples, tokens, padding, "left" if left else "right")
    z, d = draw(1, samples, tokens, inputs), draw(2, samples, tokens, outputs)
    kept = TokenInputs(z, Tokens.of_rows(mask), torch.float64, gram=gram)
    found = kept.squared_norms(d)
    scale = (z.norm(dim=(1, 2)) * d.norm(dim=(1, 2))).square()
    for column, counts in ((0, mask.bool()), (1, without_first(mask))):
        error = (found[:, column] - true_norms(z, d, counts)).abs()
        assert (error <= 1e-13 * scale).all()


@given(st.integers(1, 5), st.integers(1, 90), SIZES, SIZES, st.integers(0, 9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_batch_as_one_sample_has_a_first_token_in_each_row(
    rows, tokens, inputs, outputs, padding, gram
):
    mask = masks(rows, tokens, padding, "left")
    z, d = draw(3, rows, tokens, inputs), draw(4, rows, tokens, outputs)
    whole = (z.reshape(1, -1, inputs), d.reshape(1, -1, outputs))
    found = TokenInputs(whole[0], Tokens.of_batch(mask), torch.float64, gram=gram)
    scale = (z.norm() * d.norm()).square()
    expected = [
        true_norms(*whole, counts.reshape(1, -1)) for counts in (mask.bool(), without_first(mask))
    ]
    error = (found.squared_norms(whole[1]) - torch.stack(expected, dim=1)).abs()
    assert (error <= 1e-13 * scale).all()


@pytest.mark.parametrize("gram", [True, False])
def test_a_massive_first_token_takes_no_digits_from_the_others(gram):
    z, d = draw(5, 2, 280, 7, dtype=torch.float32), draw(6, 2, 280, 5, dtype=torch.float32)
    z[:, 0] *= 1e4
    kept = TokenInputs(z, Tokens.of_rows(torch.ones(2, 280)), torch.float32, gram=gram)
    found = kept.squared_norms(d)
    others = torch.ones(2, 280, dtype=torch.bool)
    others[:, 0] = False
    expected = true_norms(z.double(), d.double(), others)
    assert (found[:, 0] / expected > 1e5).all()
    # the difference of the two norms would be off by a hundred thousand times as much
    assert ((found[:, 1] / expected - 1).abs() < 1e-5).all()


@pytest.mark.parametrize("gram", [True, False])
def test_what_stands_at_padding_counts_for_nothing(gram):
    mask = masks(3, 70, 20, "left")
    z, d = draw(7, 3, 70, 6), draw(8, 3, 70, 4)
    tokens = Tokens.of_rows(mask)
    first = TokenInputs(z, tokens, torch.float64, gram=gram).squared_norms(d)
    pads = ~mask.bool().unsqueeze(-1)
    z, d = z.masked_fill(pads, 1e6), d.masked_fill(pads, -1e6)
    assert torch.equal(TokenInputs(z, tokens, torch.float64, gram=gram).squared_norms(d), first)


@pytest.mark.parametrize("gram", [True, False])
def test_unplaced_tokens_have_no_first(gram):
    z, d = draw(9, 1, 12, 6), draw(10, 1, 12, 4)
    tokens = Tokens.unplaced(12, z.device)
    found = TokenInputs(z, tokens, torch.float64, gram=gram).squared_norms(d)
    every = true_norms(z, d, torch.ones(1, 12, dtype=torch.bool))
    assert torch.allclose(found[:, 0], every, rtol=1e-13)
    assert found[:, 1].isnan().all()


@pytest.mark.parametrize("gram", [True, False])
def test_half_precision_products_are_summed_in_float32(gram):
    z, d = draw(11, 2, 300, 40), draw(12, 2, 300, 30)
    tokens = Tokens.of_rows(torch.ones(2, 300))
    expected = true_norms(z.bfloat16().double(), d.bfloat16().double(), tokens.real)
    kept = TokenInputs(z.bfloat16(), tokens, torch.bfloat16, gram=gram)
    found = kept.squared_norms(d.bfloat16())
    assert found.dtype is torch.float32
    assert ((found[:, 0] / expected - 1).abs() < 2e-3).all()


def test_the_product_form_holds_pieces_only(monkeypatch):
    from asr.adapters.probe import ghost_norm

    z, d = draw(13, 2, 11, 6), draw(14, 2, 11, 9)
    tokens = Tokens.of_rows(torch.ones(2, 11))
    whole = TokenInputs(z, tokens, torch.float64, gram=False).squared_norms(d)
    shapes = []
    multiply = torch.bmm

    def watch(left, right):
        found = multiply(left, right)
        shapes.append(tuple(found.shape))
        return found

    monkeypatch.setattr(ghost_norm, "_PIECE", 24)  # two of the nine outputs at once
    monkeypatch.setattr(torch, "bmm", watch)
    pieces = TokenInputs(z, tokens, torch.float64, gram=False).squared_norms(d)
    assert torch.allclose(pieces, whole, rtol=1e-13)
    assert shapes.count((2, 2, 6)) == 4
    assert shapes.count((2, 1, 6)) == 1
    assert max(s[1] * s[2] for s in shapes if s[2] == 6) == 12


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "cheaper"),
    [
        (63, 100, [171], True),  # one block: 63 * 271 < 17,100
        (63, 100, [170], False),
        (128, 576, [576, 192, 192], True),
        (256, 576, [192], False),
        (256, 576, [576, 192, 192], True),
        (400, 576, [576], True),  # 6 of 9 blocks; the whole Gram would be dearer
        (512, 576, [1536, 1536], True),
        (2048, 576, [1536, 1536], False),
    ],
)
def test_the_form_with_fewer_multiplications_is_taken(tokens, inputs, outputs, cheaper):
    assert gram_is_cheaper(tokens, inputs, outputs) is cheaper
