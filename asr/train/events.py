"""What a run tells whoever watches it. The library is silent; the command line draws."""

from __future__ import annotations

from asr.eval.matrix import EvalMatrix
from asr.train.adapter import TrainingResult
from asr.train.prepare import PreparedDomain


class Watcher:
    """Receives the events of a run; every method does nothing. Subclass what you need.

    Called on the main process only.
    """

    def say(self, message: str) -> None:
        """A choice or a fact, one line."""

    def planned(self, domains: list[PreparedDomain], todo: list[str]) -> None:
        """The run is checked; ``todo`` are the domains that it will work on."""

    def domain_started(self, domain: PreparedDomain, position: int, total: int) -> None:
        """Training of a domain starts, or goes on."""

    def step(self, step: int, steps: int, loss: float | None) -> None:
        """An optimizer step is done."""

    def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
        """The adapter is published."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Progress of another stage: embedding prompts, generating answers."""

    def evaluated(self, domain: str, matrices: dict[str, EvalMatrix]) -> None:
        """A row of the matrices is complete."""
