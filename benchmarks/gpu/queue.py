"""Jobs of one GPU, spread over processes that each hold a base of their own.

Training steps of a small base are bound by the launches of their kernels, which one process cannot
make fast enough to fill a GPU; several can. Jobs start in the order given. When the time is up, the
processes are ended and unfinished jobs are lost.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_TOGETHER = 120.0
"""Seconds that processes wait for each other."""

_PATIENCE = 3.0
"""Seconds that processes get to end by themselves."""

Start = Callable[[Any, Callable[[], None]], tuple[Any, Any]]
"""(settings, wait) -> what the process keeps for its jobs, and what it measured while it started.
``wait`` returns when all processes have called it: what follows runs in all of them at once."""

Work = Callable[[Any, Any], Any]
"""(what the process keeps, job) -> result; all of them can be pickled."""


@dataclass(frozen=True)
class Done:
    """A job that ended: its result, or the error that it failed with."""

    job: Any
    result: Any = None
    error: str | None = None


class Workers:
    """Processes that start together and then take jobs.

    Args:
        count: of processes.
        start: what each does first.
        work: what it does with a job.
        settings: given to ``start``.
    """

    def __init__(self, count: int, start: Start, work: Work, settings: Any) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._jobs = context.Queue()
        self._results = context.Queue()
        self._together = context.Barrier(count)  # kept: children look it up by name
        threads = max(1, (os.cpu_count() or 1) // count)
        self.processes = [
            context.Process(
                target=_serve,
                args=(self._jobs, self._results, self._together, start, work, settings, threads),
                daemon=True,
            )
            for _ in range(count)
        ]
        for process in self.processes:
            process.start()

    def started(self, until: float) -> list[Any]:
        """What the processes measured while they started: of those that made it in time.

        Raises:
            RuntimeError: one of them failed, or none is left.
        """
        found = []
        while len(found) < len(self.processes) and (done := self._next(until)) is not None:
            if done.error is not None:
                raise RuntimeError(f"a worker could not start:\n{done.error}")
            found.append(done.result)
        return found

    def run(self, jobs: Sequence[Any], until: float) -> Iterator[Done]:
        """Give out the jobs; yield each as it ends, until all have or the time is up.

        Raises:
            RuntimeError: no process is left.
        """
        for job in jobs:
            self._jobs.put(job)
        left = len(jobs)
        while left and (done := self._next(until)) is not None:
            if done.job is not None:  # a worker that started late says so now
                left -= 1
                yield done

    def close(self) -> None:
        """End the processes: those that wait for a job by asking, the others by force."""
        for _ in self.processes:
            self._jobs.put(None)
        until = time.monotonic() + _PATIENCE
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()

    def _next(self, until: float) -> Done | None:
        """The next message; None when the time (of ``time.monotonic``) is up."""
        while (left := until - time.monotonic()) > 0:
            try:
                done: Done = self._results.get(timeout=min(1.0, left))
            except queue.Empty:
                if not any(process.is_alive() for process in self.processes):
                    codes = [process.exitcode for process in self.processes]
                    raise RuntimeError(f"all workers are gone, exit codes {codes}") from None
            else:
                return done
        return None


def _serve(
    jobs: Any, results: Any, together: Any, start: Start, work: Work, settings: Any, threads: int
) -> None:
    """One process: start, then work until it is ended."""
    torch.set_num_threads(threads)
    try:
        kept, measured = start(settings, lambda: together.wait(_TOGETHER))
    except Exception:
        together.abort()  # the others need not wait for this one
        results.put(Done(None, error=traceback.format_exc()))
        return
    results.put(Done(None, measured))
    while (job := jobs.get()) is not None:
        try:
            results.put(Done(job, work(kept, job)))
        except Exception:  # one job's failure, said in the results, is not the others'
            results.put(Done(job, error=traceback.format_exc()))
