"""What a forward pass is tried with before anything is built on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asr.errors import BaseModelError

FORWARD_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a forward raises on an architecture that it was not written for."""

_LENGTH = 6


def check_batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Two short rows of tokens, the first padded on the left: (2, t) int64 ids and mask."""
    causal_lm: Any = model
    embedding = causal_lm.get_input_embeddings()
    ids = torch.arange(2 * _LENGTH, device=embedding.weight.device).reshape(2, -1) * 7 + 3
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids % embedding.weight.shape[0], mask


def require_token_states(model: nn.Module, hidden: Tensor, input_ids: Tensor) -> None:
    """Refuse layers that hand on anything but one vector per token: nothing else can be pooled.

    Raises:
        BaseModelError: ``hidden`` is not (b, t, d) for (b, t) token ids.
    """
    if hidden.shape[:-1] != input_ids.shape:
        raise BaseModelError(
            f"{type(model).__name__} hands states of {hidden.ndim} dimensions from layer to layer; "
            "routing needs one vector per token, use another base"
        )
