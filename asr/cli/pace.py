"""How fast a run goes, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """The training of one domain: ``steps`` in all, ``tokens`` in all (padding not counted)."""

    steps: int
    tokens: float


class Pace:
    """Speed of the current domain, time left for it and for the run.

    The first step of a domain is not counted: it carries set-up. Time that domains spend after
    training (router, evaluation) enters the estimate of the run as the mean of those seen.

    Args:
        work: what each domain of the run has before it, in order.
        clock: seconds, for tests.
    """

    def __init__(
        self, work: Mapping[str, Work], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._work = dict(work)
        self._clock = clock
        self._current: str | None = None
        self._first: tuple[int, float] | None = None
        self._step = 0
        self._after: list[float] = []
        self._trained: float | None = None
        self.tokens_per_second: float | None = None

    def start(self, domain: str) -> None:
        """A domain begins."""
        if self._trained is not None:
            self._after.append(self._clock() - self._trained)
        self._current, self._first, self._step, self._trained = domain, None, 0, None

    def step(self, step: int) -> None:
        """A step of the current domain is done."""
        now = self._clock()
        self._step = step
        work = self._of_current()
        if self._first is None:
            self._first = (step, now)
            return
        done, spent = step - self._first[0], now - self._first[1]
        if spent > 0 and work.steps:
            self.tokens_per_second = done * work.tokens / work.steps / spent

    def trained(self) -> None:
        """The adapter of the current domain is there."""
        self._trained = self._clock()

    def left(self) -> tuple[float, float] | None:
        """Return seconds left of the current domain's training and of the whole run, or None."""
        if not self.tokens_per_second or self._current is None:
            return None
        work = self._of_current()
        share = 1 - self._step / work.steps if work.steps else 0.0
        own = share * work.tokens / self.tokens_per_second
        names = list(self._work)
        position = names.index(self._current) if self._current in names else len(names)
        later = names[position + 1 :]
        rest = sum(self._work[name].tokens for name in later) / self.tokens_per_second
        if self._after:
            rest += (len(later) + 1) * sum(self._after) / len(self._after)
        return own, own + rest

    def _of_current(self) -> Work:
        return self._work.get(self._current or "", Work(0, 0.0))
