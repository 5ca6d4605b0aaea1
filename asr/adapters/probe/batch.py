"""Batches of a probe and their losses: one per sample, so that gradients of samples do not mix.

As in training, the model is asked for the logits of just the positions whose next token counts.

Notation used for tensor shapes:
    - b: rows
    - t: padded length
    - k: positions whose next token counts in at least one row
    - v: vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.base.split import accepts_logits_to_keep, position_ids_of
from asr.data.encode import IGNORED, EncodedExample
from asr.errors import DataError

Loss = Literal["answer", "full"]


@dataclass(frozen=True)
class ProbeBatch:
    """Padded rows.

    Attributes:
        input_ids: (b, t) int64.
        attention_mask: (b, t) int64, 0 at padding.
        positions: (k,) int64.
        targets: (b, k) int64, the token after each position, ``IGNORED`` where it does not count.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor


def targets_of(row: EncodedExample, loss: Loss) -> list[int]:
    """What each token but the last has to predict; ``IGNORED`` where it does not count."""
    return row.labels[1:] if loss == "answer" else row.input_ids[1:]


def require_targets(rows: Sequence[EncodedExample], loss: Loss) -> None:
    """Refuse rows that nothing can be learned from.

    Raises:
        DataError: names the first such row and how many there are.
    """
    empty = [row for row in rows if all(t == IGNORED for t in targets_of(row, loss))]
    if not rows:
        raise DataError("there are no rows to probe with; give at least one")
    if empty:
        what = "answer token" if loss == "answer" else "token after the first"
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"{empty[0].source}{more}: the row has no {what}, so there is no loss to take a "
            "gradient of; leave it out"
        )


def pad_rows(
    rows: Sequence[EncodedExample],
    loss: Loss,
    pad_token_id: int,
    device: torch.device,
    side: Literal["left", "right"] = "left",
) -> ProbeBatch:
    """Make a batch. On the left by default: answers then end together, and k is small."""
    length = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    targets = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        start = length - size if side == "left" else 0
        ids[index, start : start + size] = torch.tensor(row.input_ids, dtype=torch.long)
        predicted = torch.tensor(targets_of(row, loss), dtype=torch.long)
        targets[index, start : start + size - 1] = predicted
        mask[index, start : start + size] = 1
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    return ProbeBatch(
        ids.to(device), mask.to(device), positions.to(device), targets[:, positions].to(device)
    )


def sample_losses(model: nn.Module, batch: ProbeBatch) -> Tensor:
    """(b,) mean cross entropy over the tokens of each row that count."""
    options: dict[str, Any] = {}
    if accepts_logits_to_keep(model):
        options["logits_to_keep"] = batch.positions
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=position_ids_of(batch.attention_mask),
        use_cache=False,
        **options,
    ).logits
    if not options:
        logits = logits[:, batch.positions]
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    counts = (batch.targets != IGNORED).sum(dim=1)
    return losses.reshape(batch.targets.shape).sum(dim=1) / counts
