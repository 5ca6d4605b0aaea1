"""One run, possibly several processes: who writes, and how the others wait.

``accelerate launch -m asr train ...`` starts the same program several times; on a machine without
accelerators ``torchrun --nproc-per-node 2 -m asr train ...`` does (accelerate starts one process
there). All of them load the base and train; only the main process touches the model directory, fits
the router and evaluates.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from asr.errors import AsrError

Value = TypeVar("Value")

_PATIENCE = datetime.timedelta(days=2)
"""The others wait while the main process evaluates: longer than any default of a backend."""


class Processes:
    """The processes of this run.

    Args:
        cpu: run on the CPU, over gloo, although an accelerator may be there.
    """

    def __init__(self, cpu: bool) -> None:
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._state = PartialState(cpu=cpu, **({"timeout": _PATIENCE} if launched else {}))

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self._state.is_main_process)

    @property
    def device(self) -> str:
        """The accelerator that this process was given, e.g. ``cuda:1``."""
        device = self._state.device
        return "cpu" if device.type == "cpu" else str(device)  # not cpu:1

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Run ``work`` on the main process; every process returns its (picklable) result.

        Raises:
            AsrError: what ``work`` raised, on every process, so that none waits for ever. Anything
                else that it raises is raised as it is on the main process, and as an AsrError that
                says so on the others.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome = [work(), None]
            except AsrError as error:
                outcome = [None, error]
            except BaseException as error:
                stopped = AsrError(f"the main process stopped with {type(error).__name__}")
                broadcast_object_list([None, stopped], from_process=0)
                raise
        broadcast_object_list(outcome, from_process=0)
        value, failure = outcome
        if failure is not None:
            raise failure
        result: Value = value
        return result

    def close(self) -> None:
        """Leave the group of processes."""
        if self.count > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
