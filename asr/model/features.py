"""Routing features: the mean of the user's tokens as they enter the router layer.

One function for router fitting, routing and canaries, so that all of them see the same features.

Notation used for tensor shapes:
    - n: number of prompts
    - b: batch size
    - t: padded length
    - d: hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.base.split import PrefixState
from asr.data.prompt import EncodedPrompt

TOKENS_PER_BATCH = 4096
"""Padded tokens of one prefix batch: enough to keep the matrix products busy, little memory."""


class Forward(Protocol):
    """What :class:`asr.base.split.SplitForward` and :class:`asr.base.whole.WholeForward` share."""

    layer: int

    def prefix(self, input_ids: Tensor, attention_mask: Tensor) -> PrefixState:
        """Run the layers below the router layer."""
        ...

    def suffix(self, state: PrefixState, logits_to_keep: int = 1) -> Tensor:
        """Go on to the logits."""
        ...


def pad_left(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pad token ids on the left: (b, t) int64 ids and (b, t) int64 mask."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, length - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, length - len(row) :] = 1
    return ids.to(device), mask.to(device)


def pool(hidden: Tensor, prompts: Sequence[EncodedPrompt]) -> NDArray[np.float32]:
    """Mean of the pooled tokens: (b, d) float32 from (b, t, d) left-padded hidden states.

    The sum runs in float32 whatever the dtype of the model.
    """
    length = hidden.shape[1]
    mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        mask[index, length - len(prompt.pool_mask) :] = torch.tensor(prompt.pool_mask)
    mask = mask.to(hidden.device)
    # where, not a product: a padding position may hold inf or nan, and 0 * inf is nan
    kept = torch.where(mask.unsqueeze(-1), hidden.float(), 0.0)
    pooled = kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    result: NDArray[np.float32] = pooled.cpu().numpy()
    return result


def batches_by_length(
    lengths: Sequence[int], tokens_per_batch: int = TOKENS_PER_BATCH, most: int = 1 << 30
) -> Iterator[list[int]]:
    """Yield index lists of similar length, longest first, each at most ``tokens_per_batch`` padded.

    The longest come first, so that a batch that does not fit into memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        width = lengths[batch[0]] if batch else lengths[index]
        if batch and (width * (len(batch) + 1) > tokens_per_batch or len(batch) >= most):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def embed(
    prompts: Sequence[EncodedPrompt],
    forward: Forward,
    pad_token_id: int,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Pooled features of many prompts: (n, d) float32, in the order given.

    Args:
        prompts: encoded prompts.
        forward: split (or two-pass) forward of the *base*; adapters play no part below its layer.
        pad_token_id: id to pad with (masked).
        device: device of the model.
        progress: called with the number of prompts done in each batch.
    """
    features: NDArray[np.float32] | None = None
    for batch in batches_by_length([len(prompt.input_ids) for prompt in prompts]):
        chosen = [prompts[index] for index in batch]
        ids, mask = pad_left([prompt.input_ids for prompt in chosen], pad_token_id, device)
        pooled = pool(forward.prefix(ids, mask).hidden, chosen)
        if features is None:
            features = np.empty((len(prompts), pooled.shape[1]), dtype=np.float32)
        features[batch] = pooled
        if progress is not None:
            progress(len(batch))
    if features is None:
        raise ValueError("no prompts to embed")
    return features
