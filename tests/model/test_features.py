"""Pooled features: the mean they claim to be, whoever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.base.split import SplitForward
from asr.base.whole import WholeForward
from asr.data.prompt import EncodedPrompt
from asr.model.features import batches_by_length, embed, pad_left, pool
from tests.tiny_models import ARCHITECTURES, VOCAB, tiny_model

CPU = torch.device("cpu")
LAYER = 2


def prompts(lengths=(3, 17, 9, 30, 2, 9), seed=0):
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        ids = generator.integers(5, VOCAB, length).tolist()
        mask = (generator.random(length) < 0.5).tolist()
        made.append(EncodedPrompt(ids, [False, *mask[1:-1], True]))
    return made


def direct(model, prompt):
    """Mean over ``output_hidden_states[L]`` of the prompt alone, in float64."""
    with torch.no_grad():
        states = model(
            input_ids=torch.tensor([prompt.input_ids]), output_hidden_states=True
        ).hidden_states[LAYER][0]
    return states.double()[torch.tensor(prompt.pool_mask)].mean(0).numpy()


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("forward", [SplitForward, WholeForward])
def test_features_are_the_mean_of_the_hidden_states_entering_the_layer(architecture, forward):
    model = tiny_model(architecture)
    chosen = prompts()
    features = embed(chosen, forward(model, LAYER), 0, CPU)
    assert features.dtype == np.float32 and features.shape == (6, 32)
    for feature, prompt in zip(features, chosen, strict=True):
        assert relative(feature, direct(model, prompt)) <= 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_features_do_not_depend_on_batch_mates_padding_or_order(architecture, monkeypatch):
    model = tiny_model(architecture)
    forward = SplitForward(model, LAYER)
    chosen = prompts()
    together = embed(chosen, forward, 0, CPU)
    alone = np.concatenate([embed([prompt], forward, 0, CPU) for prompt in chosen])
    assert relative(together, alone) <= 1e-5
    order = [4, 2, 0, 5, 3, 1]
    assert relative(embed([chosen[i] for i in order], forward, 0, CPU), alone[order]) <= 1e-5
    assert relative(embed(chosen, forward, 7, CPU), alone) <= 1e-5  # another padding token
    done = []
    monkeypatch.setattr("asr.model.features.batches_by_length", lambda n: [[5, 0], [3], [1, 4, 2]])
    assert relative(embed(chosen, forward, 0, CPU, done.append), alone) <= 1e-5
    assert done == [2, 1, 3]


@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan")])
def test_what_stands_at_padding_and_at_other_tokens_does_not_leak(poison):
    hidden = torch.full((2, 4, 3), poison)
    hidden[0, 2:] = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 6.0]])
    hidden[1, 3] = 5.0
    chosen = [EncodedPrompt([1, 2], [True, True]), EncodedPrompt([1, 2, 3], [False, False, True])]
    expected = [[2.0, 3.0, 4.5], [5.0, 5.0, 5.0]]
    assert pool(hidden, chosen).tolist() == expected
    assert pool(hidden.bfloat16(), chosen).tolist() == expected


def test_the_sum_runs_in_float32():
    """In bfloat16 a sum of 4,096 ones would stop at 256."""
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    assert pool(hidden, [EncodedPrompt([0] * 4096, [True] * 4096)]).tolist() == [[1.0]]


def test_padding_is_on_the_left():
    ids, mask = pad_left([[5, 6, 7], [8]], 2, CPU)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ids.dtype == mask.dtype == torch.long


def test_no_prompts():
    with pytest.raises(ValueError, match="no prompts to embed"):
        embed([], SplitForward(tiny_model(), LAYER), 0, CPU)


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 400), st.integers(1, 20))
def test_batches_cover_every_index_once_within_the_limits(lengths, tokens, most):
    batches = list(batches_by_length(lengths, tokens, most))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= most
        # one prompt longer than the limit still has to run, alone
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    widths = [lengths[index] for batch in batches for index in batch]
    assert widths == sorted(widths, reverse=True)
