"""The rules behind settings that a config leaves open. Each choice is recorded and said aloud."""

from __future__ import annotations

import math

TARGET_STEPS = 400
"""Optimizer steps that a domain should get. Small domains starve at large batches: 240 examples and
2 epochs of four domains scored .34 on average at batch 8 (60 steps) and .43 at batch 2 (240)."""

LARGEST_BATCH = 8
SMALLEST_BATCH = 2

SINGLE_MODULE_RATE = 3e-2
"""Peak learning rate of one adapted module at the smallest batch."""

MODULES_EXPONENT = 0.6535
"""How the rate falls with the number of modules: 3e-2 for one, 1e-3 for the 182 of `deep` on
smollm2-135m. The more modules an update moves at once, the further it goes."""

BY_RULE = ("batch_size", "learning_rate")
"""Settings of a training that a rule settles where the config leaves them open."""


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


def choose_learning_rate(modules: int, batch_size: int = SMALLEST_BATCH) -> float:
    """Peak learning rate, to two digits: by the number of adapted modules and the batch size.

    It grows with the square root of the batch, as it should under Adam (Malladi et al. 2022,
    arXiv 2205.10287): a small domain at batch 8 starves at the rate of batch 2 and does not at
    three times that. Found at rank 8 to 16 with ``alpha`` twice the rank, on one base; what was
    measured stands in docs/choices.md.

    Args:
        modules: adapted modules, at least 1.
        batch_size: examples per step, over all processes.
    """
    rate = SINGLE_MODULE_RATE * modules**-MODULES_EXPONENT
    return float(f"{rate * math.sqrt(batch_size / SMALLEST_BATCH):.1e}")


def choose_save_steps(steps: int) -> int:
    """Steps between checkpoints: about twenty in a domain, at least 10 steps apart."""
    return max(10, math.ceil(steps / 20))
