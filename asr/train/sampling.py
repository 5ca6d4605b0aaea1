"""Batches of rows of about equal length: less padding, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from asr.data.encode import EncodedExample


class EpochLengthSampler(LengthGroupedSampler):
    """transformers' sampler, with an order that depends on seed and epoch alone.

    Its own order comes from a generator that runs on from epoch to epoch: a run resumed in the
    second epoch would meet the first one's order.
    """

    def __init__(self, rows: Sequence[EncodedExample], batch_size: int, seed: int) -> None:
        super().__init__(batch_size, lengths=[len(row.input_ids) for row in rows])
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the Trainer's loader calls it at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return order


class LengthGroupingTrainer(Trainer):
    """A Trainer whose batches hold rows of about equal length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochLengthSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.world_size
        return EpochLengthSampler(rows, batch_size, self.args.data_seed or 0)
