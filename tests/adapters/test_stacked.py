"""Every form of the stacked LoRA equals the plain sum per row, and carries gradients to all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.adapters import stacked
from asr.adapters.stacked import Factors, ModuleAdapters, Rows, Stack

CPU = torch.device("cpu")
WIDTH, OUT = 12, 7
RANKS = {"a": 3, "b": 3, "c": 5, "d": 1}


def factors(dtype=torch.float32, learn=False):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_(learn)

    return {name: Factors(draw(rank, WIDTH), draw(rank, OUT)) for name, rank in RANKS.items()}


def plain(y, x, names, made):
    """The definition: row by row, ``y + x A^T B``."""
    rows = [
        y[row] if name is None else y[row] + x[row] @ made[name].a.T @ made[name].b
        for row, name in enumerate(names)
    ]
    return torch.stack(rows)


def batch(names, tokens, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(names), tokens, WIDTH, generator=generator)
    return torch.randn(len(names), tokens, OUT, generator=generator), x


def adapters(names, made, slots=tuple(RANKS)):
    stack = Stack()

    def held():
        stack.hold([made.get(name) for name in slots])
        return stack

    return ModuleAdapters(Rows(names, slots, CPU), made, held)


@st.composite
def mixtures(draw):
    names = draw(st.lists(st.sampled_from([*RANKS, None]), min_size=1, max_size=9))
    present = draw(st.sets(st.sampled_from(list(RANKS)), min_size=1))
    return names, draw(st.integers(1, 40)), present, draw(st.sampled_from([0.0, 2.0, 1e9]))


@settings(max_examples=150, deadline=None)
@given(mixtures())
def test_any_mixture_in_any_form_is_the_plain_sum(mixture):
    """Adapters that do not touch the module are absent; ``emptiest`` chooses grid or mask."""
    names, tokens, present, emptiest = mixture
    made = {name: each for name, each in factors().items() if name in present}
    y, x = batch(names, tokens)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(stacked, "_EMPTIEST_GRID", emptiest)
        expected = plain(y, x, [n if n in present else None for n in names], made)
        found = adapters(names, made).add(y.clone(), x)
        flat = adapters(names, made).add(y.flatten(0, 1).clone(), x.flatten(0, 1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flat.view(expected.shape), expected, rtol=1e-5, atol=1e-5)
    for row, name in enumerate(names):
        if name is None:
            assert torch.equal(found[row], y[row])


@pytest.mark.parametrize("emptiest", [0.0, 1e9])
def test_an_infinity_of_one_row_does_not_reach_another(monkeypatch, emptiest):
    monkeypatch.setattr(stacked, "_EMPTIEST_GRID", emptiest)
    names, made = ["a", "b", None, "c", "a"], factors()
    y, x = batch(names, 1)
    x[1] = float("inf")
    x[4] = float("nan")
    with torch.no_grad():
        expected = plain(y, x, names, made)
        found = adapters(names, made).add(y.clone(), x)
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [["a"] * 4, ["a", "a", "b", "b"], ["a", None, "c", "c"], ["b", "a", "d", "c"], [None, "a"]],
)
@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_gradients_are_those_of_the_plain_sum(names, tokens):
    """Several adapters are trained at once through the same forms."""
    made, reference = factors(learn=True), factors(learn=True)
    y, x = batch(names, tokens)
    x.requires_grad_()
    other = x.detach().clone().requires_grad_()
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (adapters(names, made).add(y, x) * weights).sum().backward()
    (plain(y, other, names, reference) * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)
    for name in RANKS:
        for ours, theirs in (
            (made[name].a, reference[name].a),
            (made[name].b, reference[name].b),
        ):
            assert (ours.grad is None) == (theirs.grad is None)
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    assert y.grad is None


def test_without_gradients_the_output_is_added_to_in_place():
    y, x = batch(["a", "b"], 1)
    with torch.no_grad():
        found = adapters(["a", "b"], factors()).add(y, x)
    assert found.data_ptr() == y.data_ptr()


@pytest.mark.parametrize("tokens", [1, 40])
def test_factors_in_float32_serve_a_bfloat16_base(tokens):
    names, made = ["a", "b", None, "c"], factors()
    y, x = batch(names, tokens)
    with torch.no_grad():
        found = adapters(names, made).add(y.bfloat16(), x.bfloat16())
        expected = plain(y.bfloat16().float(), x.bfloat16().float(), names, made)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-1)


def test_a_stack_copies_only_what_is_new():
    made, stack = factors(), Stack()
    stack.hold([made["a"], made["b"]])
    block = stack.a
    assert block.shape == (2, 3, WIDTH)
    made["b"].a.fill_(7.0)  # what is held already is not looked at again
    stack.hold([made["d"], made["b"]])
    assert stack.a is block and torch.equal(block[0, :1], made["d"].a)
    assert not block[0, 1:].any() and not (block[1] == 7.0).any()
    stack.hold([None, made["b"]])
    assert not block[0].any() and not stack.b[0].any()
    stack.hold([made["c"], made["b"], made["a"]])  # more slots, a larger rank: a new block
    assert stack.a.shape == (3, 5, WIDTH) and (stack.a[1, :3] == 7.0).all()
    with pytest.raises(ValueError, match="no factors to stack"):
        Stack().hold([None])


def test_a_batch_of_another_size_is_an_error():
    y, x = batch(["a", "b", None], 2)
    with pytest.raises(ValueError, match="a batch of 3 rows runs with adapters for 2"):
        adapters(["a", "b"], factors()).add(y, x)
