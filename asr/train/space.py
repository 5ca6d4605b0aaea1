"""Whether a run fits on the disk, asked before anything is trained.

What is counted is what grows: the adapters, the checkpoints of the domain in training, the router's
statistics. Text that is kept (dev prompts, answers, the ledger) is small beside them and covered by
the reserve.

Memory is not checked: what a step needs depends on the attention's implementation and the
allocator, and an estimate that is wrong by a factor of two would refuse runs that fit.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from asr.errors import StorageError
from asr.train.prepare import PreparedDomain

FLOAT = 4
"""Bytes of a parameter: adapters are stored in float32, and so are Adam's two moments."""

CHECKPOINTS = 2
"""The one being written and the one before it."""

STATISTICS = 8
"""Bytes of an entry of the statistics: float64."""

RESERVE = 64 * 2**20


def needed_bytes(domains: Sequence[PreparedDomain], features: int) -> int:
    """Return about how much a run of these domains writes at its fullest.

    Args:
        domains: those that will be trained.
        features: width of the router's features.
    """
    if not domains:
        return 0
    trained = [domain.placement.parameters(domain.lora.rank) for domain in domains]
    adapters = sum(domain.saved_parameters for domain in domains) * FLOAT
    checkpoints = max(trained) * 3 * FLOAT * CHECKPOINTS  # weights and both moments
    statistics = len(domains) * features**2 * STATISTICS
    return adapters + checkpoints + statistics + RESERVE


def require_space(out: Path, needed: int) -> None:
    """Refuse a run that the disk of ``out`` has no room for.

    Raises:
        StorageError: says what is needed, what is free, and where.
    """
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StorageError(
            f"the run needs about {_megabytes(needed)} for adapters, checkpoints and statistics, "
            f"and the disk of {place} has {_megabytes(free)} free; free space, or choose another "
            "--out"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
