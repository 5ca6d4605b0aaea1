"""Batches and loss with logits at supervised positions only.

Most positions of a training batch are prompt: their logits (one per vocabulary entry) are the
largest tensors of the step, and the loss throws them away. Rows are padded on the *left*, so that
the answers of a batch end together, and the model is asked for the logits of just those positions
through its own ``logits_to_keep`` argument. The loss is the same.

Notation used for tensor shapes:
    - b: batch size
    - t: padded length
    - k: positions whose next token is supervised in at least one row
    - v: vocabulary size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asr.base.split import position_ids_of
from asr.data.encode import IGNORED, EncodedExample


class SupervisedCollator:
    """Makes batches from encoded examples.

    Args:
        pad_token_id: id to pad with; masked.
        keep: ask for supervised positions only, where the model can
            (:func:`asr.base.split.accepts_logits_to_keep`).
    """

    def __init__(self, pad_token_id: int, keep: bool) -> None:
        self.pad_token_id = pad_token_id
        self.keep = keep

    def __call__(
        self, rows: Sequence[EncodedExample] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Collate rows.

        Returns:
            ``input_ids``, ``attention_mask``, ``position_ids``: (b, t) int64. ``labels``:
            (b, 1 + k) int64 next tokens behind one ignored column: the Trainer counts a batch's
            tokens from the second column on, as for labels that are yet to be shifted. With
            ``keep``, ``logits_to_keep``: (k,) int64 positions; without, k = t - 1.
        """
        pairs = [_ids_and_labels(row) for row in rows]
        length = max(len(ids) for ids, _ in pairs)
        ids = torch.full((len(pairs), length), self.pad_token_id, dtype=torch.long)
        labels = torch.full((len(pairs), length), IGNORED, dtype=torch.long)
        mask = torch.zeros((len(pairs), length), dtype=torch.long)
        for index, (row_ids, row_labels) in enumerate(pairs):
            start = length - len(row_ids)
            ids[index, start:] = torch.tensor(row_ids, dtype=torch.long)
            labels[index, start:] = torch.tensor(row_labels, dtype=torch.long)
            mask[index, start:] = 1
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": position_ids_of(mask),
        }
        targets = labels[:, 1:]  # (b, t - 1): what position i has to predict
        if self.keep:
            positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (k,)
            targets = targets[:, positions]
            batch["logits_to_keep"] = positions
        ignored = torch.full((len(pairs), 1), IGNORED, dtype=torch.long)
        batch["labels"] = torch.cat([ignored, targets], dim=1)
        return batch


def _ids_and_labels(row: Any) -> tuple[Sequence[int], Sequence[int]]:
    if isinstance(row, Mapping):
        return row["input_ids"], row["labels"]
    return row.input_ids, row.labels


def supervised_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Mean cross entropy over the supervised tokens of the whole (accumulated) batch.

    Args:
        outputs: model output with ``logits`` (b, k, v), or (b, t, v) where all were computed.
        labels: (b, 1 + k) from :class:`SupervisedCollator`.
        num_items_in_batch: supervised tokens over all processes and accumulation steps; None: those
            of this batch.
    """
    targets = labels[:, 1:]
    logits = outputs["logits"][:, : targets.shape[1]]
    total = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        targets.reshape(-1).to(logits.device),
        ignore_index=IGNORED,
        reduction="sum",
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED).sum()
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
