"""The rules behind settings that a config leaves open. Each choice is recorded and said aloud."""

from __future__ import annotations

import math

TARGET_STEPS = 400
"""Optimizer steps that a domain should get. Small domains starve at large batches: 240 examples and
2 epochs of four domains scored .34 on average at batch 8 (60 steps) and .43 at batch 2 (240)."""

LARGEST_BATCH = 8
SMALLEST_BATCH = 2

DEEP_RATE = 1e-3
SINGLE_MODULE_RATE = 1e-2
"""One module has a hundredth of the parameters and wants ten times the rate."""


def choose_batch_size(rows: int, epochs: int, processes: int = 1) -> int:
    """Examples per step: the largest power of two that leaves ``TARGET_STEPS`` steps.

    Between ``SMALLEST_BATCH`` and ``LARGEST_BATCH``, and a multiple of the number of processes.

    Args:
        rows: training rows of the domain.
        epochs: passes over them.
        processes: data-parallel processes that share a batch.
    """
    wanted = max(1, rows * epochs // TARGET_STEPS)
    size = min(LARGEST_BATCH, max(SMALLEST_BATCH, 1 << (wanted.bit_length() - 1)))
    return math.ceil(size / processes) * processes


def choose_learning_rate(modules: int) -> float:
    """Peak learning rate by the number of adapted modules."""
    return SINGLE_MODULE_RATE if modules == 1 else DEEP_RATE


def choose_save_steps(steps: int) -> int:
    """Steps between checkpoints: about twenty in a domain, at least 10 steps apart."""
    return max(10, math.ceil(steps / 20))
