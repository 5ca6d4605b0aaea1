"""Progress of a run: a live bar in a terminal, a few plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from asr.cli.output import seconds
from asr.cli.pace import Pace

LINES_PER_DOMAIN = 5
"""Lines about the steps of a domain in a log."""

STAGE_SECONDS = 30.0
"""Other stages get a line in a log when they last longer than this."""


class Display(Protocol):
    """Shows where a run stands."""

    def begin(self, title: str) -> None:
        """A domain begins."""

    def step(self, step: int, steps: int, loss: float | None, pace: Pace) -> None:
        """A step is done."""

    def stage(self, what: str, done: int, total: int) -> None:
        """Progress of embedding prompts or generating answers."""

    def close(self) -> None:
        """Nothing more is to be shown; may be called twice."""


def make_display(console: Console) -> Display:
    """Return the display that fits the console."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console) if live else PlainDisplay(console)


def speed_and_time(pace: Pace) -> str:
    """Return ``2,964 tokens/s, 12 s left (all: 3 min 20 s)``, or an empty text at the start."""
    parts = []
    if pace.tokens_per_second:
        parts.append(f"{pace.tokens_per_second:,.0f} tokens/s")
    left = pace.left()
    if left is not None:
        parts.append(f"{seconds(left[0])} left (all: {seconds(left[1])})")
    return ", ".join(parts)


class LiveDisplay:
    """One bar, redrawn in place; it disappears when the run is over."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
        )
        self._task: Any = None
        self._title = ""

    def begin(self, title: str) -> None:
        """See :class:`Display`."""
        self._title = title
        self._show(title, 0, None, "")

    def step(self, step: int, steps: int, loss: float | None, pace: Pace) -> None:
        """See :class:`Display`."""
        parts = ["" if loss is None else f"loss {loss:.2f}", speed_and_time(pace)]
        self._show(self._title, step, steps, ", ".join(part for part in parts if part))

    def stage(self, what: str, done: int, total: int) -> None:
        """See :class:`Display`."""
        self._show(what, done, total, "")

    def close(self) -> None:
        """See :class:`Display`."""
        self._progress.stop()
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _show(self, title: str, done: int, total: int | None, detail: str) -> None:
        if self._task is None:
            self._task = self._progress.add_task(title, total=total, detail=detail)
            self._progress.start()
        self._progress.update(
            self._task, description=title, completed=done, total=total, detail=detail
        )


class PlainDisplay:
    """Lines at a few intervals, for logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last_stage = clock()
        self._shown = 0

    def begin(self, title: str) -> None:
        """See :class:`Display`."""
        self._shown = 0
        self._last_stage = self._clock()
        self._print(title)

    def step(self, step: int, steps: int, loss: float | None, pace: Pace) -> None:
        """See :class:`Display`."""
        self._last_stage = self._clock()
        share = step * LINES_PER_DOMAIN // max(1, steps)
        if share <= self._shown or step == steps:
            return
        self._shown = share
        parts = [f"  step {step}/{steps}", "" if loss is None else f"loss {loss:.3f}"]
        self._print(", ".join(part for part in [*parts, speed_and_time(pace)] if part))

    def stage(self, what: str, done: int, total: int) -> None:
        """See :class:`Display`."""
        now = self._clock()
        if now - self._last_stage >= STAGE_SECONDS:
            self._last_stage = now
            self._print(f"  {what}: {done}/{total}")

    def close(self) -> None:
        """See :class:`Display`."""

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
