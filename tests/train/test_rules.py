"""The rules behind open settings."""

from __future__ import annotations

import pytest

from asr.train.rules import (
    LARGEST_BATCH,
    SINGLE_MODULE_RATE,
    SMALLEST_BATCH,
    TARGET_STEPS,
    choose_batch_size,
    choose_learning_rate,
    choose_save_steps,
)


@pytest.mark.parametrize(
    ("rows", "epochs", "size"),
    [(1, 1, 2), (240, 2, 2), (799, 1, 2), (800, 1, 2), (1599, 1, 2), (1600, 1, 4), (3200, 1, 8),
     (1_000_000, 3, 8)],
)  # fmt: skip
def test_batch_sizes(rows: int, epochs: int, size: int) -> None:
    assert choose_batch_size(rows, epochs) == size


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8, 16])
def test_a_batch_divides_over_the_processes_and_starves_nobody(processes: int) -> None:
    for rows in range(1, 6000, 97):
        size = choose_batch_size(rows, 1, processes)
        assert size % processes == 0
        assert size >= SMALLEST_BATCH
        if processes == 1 and size > SMALLEST_BATCH:
            assert rows // size >= TARGET_STEPS
            assert size <= LARGEST_BATCH


def test_the_rate_falls_with_modules_and_grows_with_the_batch() -> None:
    assert choose_learning_rate(1) == SINGLE_MODULE_RATE
    assert choose_learning_rate(182) == 1e-3  # deep on smollm2-135m
    assert choose_learning_rate(182, 8) == 2e-3
    rates = [choose_learning_rate(modules) for modules in range(1, 600)]
    assert rates == sorted(rates, reverse=True)
    assert all(f"{rate:.2g}" == f"{rate:g}" for rate in rates)


@pytest.mark.parametrize(("steps", "apart"), [(1, 10), (200, 10), (201, 11), (1000, 50)])
def test_about_twenty_checkpoints(steps: int, apart: int) -> None:
    assert choose_save_steps(steps) == apart
