"""Positions count real tokens only: absolute ones (GPT-2) would otherwise move with the padding."""

from __future__ import annotations

import torch

from asr.base.split import SplitForward, position_ids_of
from tests.tiny_models import VOCAB, tiny_model


def test_padding_moves_no_position() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    positions = position_ids_of(mask)
    assert positions.dtype == torch.int64
    assert positions[0].tolist() == [0, 0, 0, 1, 2]
    assert positions[1, :3].tolist() == [0, 1, 2]
    assert positions[2].tolist() == [0, 1, 2, 3, 4]


def test_a_padded_prompt_has_the_features_and_logits_that_it_has_alone() -> None:
    model = tiny_model("gpt2")
    split = SplitForward(model, 2)
    ids = torch.randint(5, VOCAB, (1, 6), generator=torch.Generator().manual_seed(1))
    alone = split.prefix(ids, torch.ones_like(ids))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(10) >= 4).long()[None]
    state = split.prefix(padded, mask)
    torch.testing.assert_close(state.hidden[:, 4:], alone.hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(split.suffix(state), split.suffix(alone), rtol=1e-4, atol=1e-4)
