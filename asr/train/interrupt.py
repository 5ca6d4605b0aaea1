"""Ctrl-C while a domain trains: finish the step, save a checkpoint, stop.

The first interrupt is answered at the next step's end; a second one stops at once (the last
checkpoint stays). With several processes they agree on the step at which to stop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnInterrupt(TrainerCallback):
    """Trainer callback and context manager.

    Args:
        announce: told at the first interrupt that it was heard; a step may take a while.

    Attributes:
        requested: this process was interrupted; settable, for callers with another way to ask.
        interrupted: training was stopped for it.
    """

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        self.announce = announce
        self.requested = False
        self.interrupted = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only; elsewhere the caller's handler stays.
        # A run started in the background ignores the terminal's Ctrl-C, and goes on doing so.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        ):
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.announce is not None:
            self.announce("stopping after this step, with a checkpoint; Ctrl-C again stops at once")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Ask the Trainer to save and stop, on all processes at the same step."""
        if self._any_process_requested(args):
            self.interrupted = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def _any_process_requested(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.requested
        flag = torch.tensor([int(self.requested)], device=args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())
