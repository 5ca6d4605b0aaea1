"""Time alternatives side by side: A B C A B C ..., medians and ratios of medians.

Machines are shared and drift; only ratios of what ran interleaved in one process mean something.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one alternative: median, fastest and slowest of its rounds."""

    median: float
    fastest: float
    slowest: float


def interleave(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Run every alternative once per round, in turn, after ``warmup`` rounds that do not count.

    Args:
        alternatives: name -> what to time; called without arguments.
        rounds: counted rounds.
        warmup: uncounted rounds first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(warmup + rounds):
        for name, run in alternatives.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return {
        name: Timing(statistics.median(taken), min(taken), max(taken))
        for name, taken in seconds.items()
    }


def machine() -> str:
    """The processor (or GPU) and the number of threads, for the line above the figures."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
