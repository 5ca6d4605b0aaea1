"""A run as JSON lines on standard output: one event a line, for pipelines and dashboards.

======================  ===========================================================================
event                   fields
======================  ===========================================================================
``note``                message; ``warning`` where it is one
``planned``             domains: for each that will be trained its examples, steps, settings, size
``domain_started``      domain, position (from 1), total
``step``                domain, step, steps, loss, tokens_per_second, seconds_left,
                        run_seconds_left (null until they are known)
``trained``             domain, steps, loss, tokens, seconds
``progress``            what, done, total: embedding prompts, generating answers
``evaluated``           domain, kind, routed, oracle, base (scores by domain), op, bwt, routing
``finished``            model, domains
======================  ===========================================================================

Every line also holds ``time``, seconds since 1970. Errors are on standard error and in the exit
code, as always. A field may be added; none is renamed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr.cli.output import write_line
from asr.cli.pace import Pace, Work


def write_event(event: str, **fields: Any) -> None:
    """Print one event."""
    write_line(json.dumps({"event": event, "time": time.time(), **fields}, ensure_ascii=False))


def write_finished(out: Path, domains: Sequence[str]) -> None:
    """Print the last event of a run."""
    write_event("finished", model=str(out), domains=list(domains))


def make_event_lines() -> Any:
    """Return the watcher that prints a run's events (made here: its base class needs torch)."""
    from asr.eval.matrix import EvalMatrix
    from asr.train.adapter import TrainingResult
    from asr.train.events import Watcher
    from asr.train.prepare import PreparedDomain

    class EventLines(Watcher):
        """Prints every event of a run."""

        def __init__(self) -> None:
            self._domain = ""
            self._pace = Pace({})

        def close(self) -> None:
            """Nothing is left open."""

        def say(self, message: str) -> None:
            warning = message.startswith("warning: ")
            write_event(
                "note",
                message=message.removeprefix("warning: "),
                **({"warning": True} if warning else {}),
            )

        def planned(self, domains: list[PreparedDomain], todo: list[str]) -> None:
            chosen = [domain for domain in domains if domain.name in todo]
            self._pace = Pace({domain.name: work_of(domain) for domain in chosen})
            write_event("planned", domains=[_plan(domain) for domain in chosen])

        def domain_started(self, domain: PreparedDomain, position: int, total: int) -> None:
            self._domain = domain.name
            self._pace.start(domain.name)
            write_event("domain_started", domain=domain.name, position=position + 1, total=total)

        def step(self, step: int, steps: int, loss: float | None) -> None:
            self._pace.step(step)
            own, run = self._pace.left() or (None, None)
            write_event(
                "step",
                domain=self._domain,
                step=step,
                steps=steps,
                loss=loss,
                tokens_per_second=self._pace.tokens_per_second,
                seconds_left=own,
                run_seconds_left=run,
            )

        def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
            self._pace.trained()
            write_event(
                "trained",
                domain=domain.name,
                steps=result.steps,
                loss=result.loss,
                tokens=result.tokens,
                seconds=result.seconds,
            )

        def progress(self, what: str, done: int, total: int) -> None:
            write_event("progress", what=what, done=done, total=total)

        def evaluated(self, domain: str, matrices: dict[str, EvalMatrix]) -> None:
            for kind, matrix in matrices.items():
                routing = matrix.routing()
                write_event(
                    "evaluated",
                    domain=domain,
                    kind=kind,
                    routed=_by_domain(matrix.domains, matrix.routed[-1]),
                    oracle=_by_domain(matrix.domains, matrix.oracle[-1]),
                    base=_by_domain(matrix.domains, matrix.base),
                    op=matrix.op(),
                    bwt=matrix.bwt(),
                    routing=None if routing is None else routing.mean,
                )

    def _plan(domain: PreparedDomain) -> dict[str, Any]:
        data, settings = domain.data, domain.settings
        plan: dict[str, Any] = {
            "domain": domain.name,
            "placement": domain.placement.describe(),
            "rank": domain.lora.rank,
            "parameters": domain.placement.parameters(domain.lora.rank),
        }
        if data is not None and settings is not None:
            plan |= {
                "train": len(data.train),
                "dev": len(data.dev),
                "steps": settings.steps(len(data.encoded.rows)),
                "batch_size": settings.batch_size,
                "learning_rate": settings.learning_rate,
            }
        return plan

    return EventLines()


def work_of(domain: Any) -> Work:
    """Return the training that a prepared domain has before it."""
    if domain.data is None or domain.settings is None:
        return Work(0, 0.0)
    rows = len(domain.data.encoded.rows)
    steps = domain.settings.steps(rows)
    per_step = domain.data.encoded.report.total_tokens * domain.settings.batch_size / rows
    return Work(steps, steps * per_step)


def _by_domain(domains: Sequence[str], values: Any) -> dict[str, float | None]:
    """Scores by domain; null where there is none, which JSON has no other word for."""
    numbers = (float(value) for value in values)
    return {
        name: None if math.isnan(number) else number
        for name, number in zip(domains, numbers, strict=True)
    }
