"""The parts of the GPU measurements: the table of them, and what each is given.

A part is a module with a function ``run(part)``. To add one, write the module and add a line to
``PARTS``.
"""

from __future__ import annotations

import platform
import time
from argparse import Namespace
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from asr.atomic import json_text, write_text


@dataclass(frozen=True)
class Plan:
    """Where a part is, and how much of the time it gets beside the others."""

    module: str
    weight: float


PARTS = {
    "throughput": Plan("benchmarks.gpu.throughput", 1.0),
    "page": Plan("benchmarks.gpu.page", 1.0),
    "decode": Plan("benchmarks.gpu.decode", 4.0),
    "quality": Plan("benchmarks.gpu.quality", 5.0),  # last: it also gets what the others left
}
"""In the order in which they run."""

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "tokenizers")


@dataclass
class Part:
    """What a part is given: the command's options, its time, and where its figures go.

    Attributes:
        name: a key of ``PARTS``; figures are written to ``OUT/<name>.json``.
        options: of the command line.
        seconds: time for the part, from now on.
    """

    name: str
    options: Namespace
    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left; negative when the time is up."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def spent(self) -> float:
        """Seconds since the part began."""
        return self.seconds - self.left

    @property
    def work(self) -> Path:
        """A folder for what is not kept, made when it is asked for."""
        folder = Path(self.options.work) / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def say(self, line: str) -> None:
        """Print a line of progress, with the time."""
        print(f"[{self.name} {self.spent:6.1f} s] {line}", flush=True)

    def save(self, complete: bool, **figures: Any) -> None:
        """Write the part's file anew: what was measured so far, and whether that is all.

        Raises:
            StorageError: the file system refused.
        """
        write_text(
            Path(self.options.out) / f"{self.name}.json",
            json_text(
                {
                    "part": self.name,
                    "complete": complete,
                    "seconds": round(self.spent, 1),
                    "time_given": round(self.seconds, 1),
                    "rehearsal": self.options.rehearse,
                    "machine": describe_machine(),
                    **figures,
                }
            ),
        )


def describe_machine() -> dict[str, Any]:
    """The device and the versions that figures were measured with."""
    found: dict[str, Any] = {"python": platform.python_version(), "device": "cpu"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["device"] = torch.cuda.get_device_name(0)
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
