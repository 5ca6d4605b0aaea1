"""Rows that join and leave a running batch answer as they would alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from asr.base.row_cache import RowCache, states_of
from tests.tiny_models import ARCHITECTURES, VOCAB, tiny_model


def prompt(seed: int, length: int) -> torch.Tensor:
    return torch.randint(5, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def alone(model, ids, steps):
    """Greedy tokens and the logits before each, recomputed from nothing at every step."""
    tokens, logits = [], []
    for _ in range(steps):
        last = model(input_ids=ids, use_cache=False).logits[:, -1]
        logits.append(last[0])
        tokens.append(int(last.argmax()))
        ids = torch.cat([ids, last.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens, torch.stack(logits)


@torch.no_grad()
def joined(model, cache, ids):
    own = DynamicCache()
    logits = model(input_ids=ids, past_key_values=own, use_cache=True).logits[0, -1]
    cache.join(states_of(own, 0, ids.shape[1], ids.shape[1]), ids.shape[1])
    return logits


@torch.no_grad()
def step(model, cache, tokens, only=None):
    rows = list(range(len(tokens))) if only is None else [only]
    mask = cache.mask(torch.device("cpu"), only)
    positions = torch.tensor([[cache.lengths[row]] for row in rows])
    with cache.step(only):
        return model(
            input_ids=torch.tensor([[tokens[row]] for row in rows]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_come_and_go_and_answer_as_alone(architecture):
    """Also beyond a sliding window of 8, and past the first block of 256 columns."""
    model, numbers = tiny_model(architecture), random.Random(3)
    lengths = [5, 40, 3, 17, 250, 9, 12, 30]
    expected = [alone(model, prompt(i, length), 12) for i, length in enumerate(lengths)]
    cache, rows, told, waiting = RowCache(), [], {}, list(range(len(lengths)))
    while waiting or rows:
        if waiting and (not rows or numbers.random() < 0.5):
            which = waiting.pop(0)
            rows.append(which)
            told[which] = [joined(model, cache, prompt(which, lengths[which]))]
            continue
        last = [int(told[which][-1].argmax()) for which in rows]
        for row, logits in enumerate(step(model, cache, last)):
            told[rows[row]].append(logits)
        for row in reversed(range(len(rows))):
            if len(told[rows[row]]) == 12 or (len(rows) > 2 and numbers.random() < 0.1):
                moved = cache.leave(row)
                rows[row] = rows[moved]
                rows.pop()
    assert cache.width == 0
    for which, logits in told.items():
        tokens, reference = expected[which]
        found = torch.stack(logits)
        torch.testing.assert_close(found, reference[: len(logits)], rtol=1e-3, atol=1e-4)
        assert found.argmax(dim=-1).tolist() == tokens[: len(logits)]
    assert sum(len(logits) == 12 for logits in told.values()) >= 4


def test_a_step_that_fails_has_not_happened():
    model, cache = tiny_model(), RowCache()
    first = [int(joined(model, cache, prompt(i, 6 + i)).argmax()) for i in range(3)]
    before = cache.lengths[:]

    def fail(module, args):
        raise RuntimeError("no")

    handle = model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        step(model, cache, first)
    handle.remove()
    assert cache.lengths == before
    one_by_one = torch.cat([step(model, cache, first, only=row) for row in range(3)])
    assert cache.lengths == before  # nobody has grown
    together = step(model, cache, first)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-5)
    assert cache.lengths == [length + 1 for length in before]


def test_what_a_row_that_left_had_does_not_reach_the_next_one():
    """A row of NaN leaves NaN behind in its columns; the mask alone would not keep it out."""
    model, cache = tiny_model(), RowCache()
    token = int(joined(model, cache, prompt(1, 4)).argmax())
    bad = DynamicCache()
    model(input_ids=prompt(2, 30), past_key_values=bad, use_cache=True)
    for layer in bad.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("nan"))
    row = cache.join(states_of(bad, 0, 30, 30), 30)
    cache.leave(row)
    joined(model, cache, prompt(3, 6))
    joined(model, cache, prompt(4, 30))
    expected = alone(model, prompt(1, 4), 2)[1][1]
    found = step(model, cache, [token, 7, 8])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert not found.isnan().any()


def test_a_rows_states_are_copies_of_what_it_has_seen():
    model, cache = tiny_model(), RowCache()
    joined(model, cache, prompt(1, 9))
    token = int(joined(model, cache, prompt(2, 5)).argmax())
    step(model, cache, [3, token])
    ids = torch.cat([prompt(2, 5), torch.tensor([[token]])], dim=1)
    own = DynamicCache()
    model(input_ids=ids, past_key_values=own, use_cache=True)
    states = cache.states(1)
    for (keys, values), layer in zip(states, own.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values, layer.values[0], rtol=1e-5, atol=1e-5)
    kept = states[0][0].clone()
    step(model, cache, [4, 5])
    cache.leave(1)
    assert torch.equal(states[0][0], kept)
