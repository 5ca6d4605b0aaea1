"""How large the demo is, and how long that takes on this machine.

The budget, in tokens of the built-in base, as :func:`stage_costs` counts them. Both methods see
every domain; the first domain is the same training for both and is done once. 87 to 92 of 104
examples are trained on (65 to 70 of 80 in the short form), twice, of 62 to 83 tokens on average:

                              full (4 domains)     quick (2 domains)
    private adapters          52,000 tokens        17,900 tokens
    one LoRA                  40,900                9,300
    background class           6,100                3,100
    answers                   11,800 generated      3,400 generated, DECODE_COST each

At 270 training tokens/s (2 cores with AVX512-BF16) that is 8 and 3 minutes. A machine without the
instruction trains 60 to 150 tokens/s and gets the short form, unless ``--full`` asks otherwise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asr.adapters import detach
from asr.base.load import LoadedBase
from asr.cli.output import seconds
from asr.cli.pace import Pace
from asr.model.background_prompts import TOKENS
from asr.train.adapter import train_adapter
from asr.train.prepare import PreparedDomain


@dataclass(frozen=True)
class Form:
    """A size of the demo.

    Attributes:
        name: ``full`` or ``quick``.
        domains: in the order in which they are learned.
        train: training examples per domain; 15% of them are held out as dev.
        test: test examples per domain.
        background: prompts that the base writes for the router's background class.
    """

    name: str
    domains: tuple[str, ...]
    train: int
    test: int
    background: int


FULL = Form(
    "full",
    ("dates", "triage", "sql", "arithmetic"),
    train=104,
    test=40,
    background=128,
)
QUICK = Form("quick", ("dates", "sql"), train=80, test=30, background=64)

LIMIT_SECONDS = 600.0
"""The full demo promises ten minutes; where it would take longer, the short form runs."""

START_SECONDS = 40.0
"""Imports, loading the base, router statistics and hashes: what no token count holds."""

DECODE_COST = 2.0
"""A generated token takes the time of this many trained ones, in batches of 30 to 40."""

WARMUP_STEPS = 8
UNCOUNTED_STEPS = 2
"""The first steps carry set-up and are not timed."""

Stage = tuple[str, str]
"""(what, domain); what is ``private``, ``one LoRA`` or ``score``."""


def stage_costs(domains: Sequence[PreparedDomain], form: Form) -> dict[Stage, float]:
    """Return what each stage of the demo costs, in training tokens.

    Args:
        domains: of the form, in training order, with their data.
        form: its sizes.
    """
    costs: dict[Stage, float] = {}
    answers: list[float] = []  # tokens of one answer, per domain
    for k, domain in enumerate(domains):
        data, settings = domain.data, domain.settings
        assert data is not None and settings is not None
        report = data.encoded.report
        tokens = report.total_tokens * settings.passes
        answers.append(report.supervised_tokens / max(1, report.rows))
        # The background class is sampled once, in large batches: a token costs about one trained.
        costs["private", domain.name] = tokens + (0 if k else form.background * TOKENS)
        costs["one LoRA", domain.name] = tokens if k else 0.0
        # The base runs to the limit; private answers are kept from domain to domain.
        generated = domain.max_new_tokens + answers[k] + sum(answers[: k + 1])
        costs["score", domain.name] = DECODE_COST * form.test * generated
    return costs


def estimate(costs: Mapping[Stage, float], tokens_per_second: float) -> float:
    """Return the seconds that all stages take at this speed, start included."""
    return START_SECONDS + sum(costs.values()) / tokens_per_second


def measure(base: LoadedBase, domain: PreparedDomain) -> float:
    """Train a few steps of a domain on the real base, throw them away, return tokens/s."""
    data, settings = domain.data, domain.settings
    assert data is not None and settings is not None
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model, _ = train_adapter(
            base,
            data.encoded.rows,
            domain.placement,
            domain.lora,
            replace(settings, max_steps=WARMUP_STEPS),
            seed=0,
            checkpoints=Path(folder) / "warm-up",
            save_steps=10 * WARMUP_STEPS,
            progress=lambda step, steps, loss: marks.append(time.perf_counter()),
        )
    detach(model)
    skipped = min(UNCOUNTED_STEPS, len(marks) - 2)
    spent = marks[-1] - marks[max(0, skipped)]
    counted = len(marks) - 1 - max(0, skipped)
    row = data.encoded.report.total_tokens / len(data.encoded.rows)
    return counted * settings.batch_size * row / max(spent, 1e-9)


class Budget(Pace):
    """Time left for a stage and for the whole demo, from what its stages cost.

    Speed is the warm-up's until a tenth of the work is done, then what was seen so far.

    Args:
        costs: of every stage, in training tokens; see :func:`stage_costs`.
        tokens_per_second: of the warm-up.
    """

    def __init__(self, costs: Mapping[Stage, float], tokens_per_second: float) -> None:
        super().__init__({})
        self._costs = dict(costs)
        self._rate = tokens_per_second
        self._stage: Stage | None = None
        self._share = 0.0
        self._finished: set[Stage] = set()
        self._worked, self._spent = 0.0, 0.0
        self._began = self._clock()
        self._marked: tuple[float, float] | None = None

    def enter(self, stage: Stage) -> None:
        """A stage begins."""
        self._stage, self._share, self._began = stage, 0.0, self._clock()
        self._marked, self.tokens_per_second = None, None

    def advance(self, share: float) -> None:
        """So much of the current stage, of 1, is done."""
        self._share, now = share, self._clock()
        if self._marked is None:  # what came before carries set-up
            self._marked = share, now
        elif self._stage is not None and now > self._marked[1]:
            done = (share - self._marked[0]) * self._costs.get(self._stage, 0.0)
            self.tokens_per_second = done / (now - self._marked[1])

    def leave(self) -> None:
        """The current stage is over."""
        if self._stage is not None:
            self._finished.add(self._stage)
            self._worked += self._costs.get(self._stage, 0.0)
            self._spent += self._clock() - self._began
        self._stage, self._share = None, 0.0

    def skip(self, stage: Stage) -> None:
        """A stage that needs no work."""
        self._finished.add(stage)

    def left(self) -> tuple[float, float]:
        """Return seconds left of the stage and of the demo."""
        total = sum(self._costs.values())
        rate = self._worked / self._spent if self._worked > total / 10 else self._rate
        own = 0.0
        if self._stage is not None:
            cost = self._costs.get(self._stage, 0.0)
            share = self._share
            if self._marked is None and cost:  # a stage that counts no steps: by the clock
                share = min(0.95, (self._clock() - self._began) * rate / cost)
            own = (1 - share) * cost
        rest = sum(
            cost
            for stage, cost in self._costs.items()
            if stage not in self._finished and stage != self._stage
        )
        return own / (self.tokens_per_second or rate), (own + rest) / rate


def choose(
    asked: Form | None, costs: Mapping[Stage, float], tokens_per_second: float
) -> tuple[Form, str]:
    """Return the form to run, and why, in a sentence with the numbers.

    Args:
        asked: what the user asked for; None: by the speed.
        costs: of the full form; of the quick one where that was asked for.
        tokens_per_second: of the warm-up.
    """
    tokens, speed = sum(costs.values()), f"{tokens_per_second:,.0f} training tokens/s here"
    time_needed = estimate(costs, tokens_per_second)
    if asked is not None:
        return asked, f"{speed}: the {asked.name} demo takes about {seconds(time_needed)}"
    if time_needed <= LIMIT_SECONDS:
        return (
            FULL,
            f"{speed}: the full demo ({tokens:,.0f} tokens) takes about {seconds(time_needed)}",
        )
    return QUICK, (
        f"{speed}: the full demo ({tokens:,.0f} tokens) would take about {seconds(time_needed)}, "
        f"and it promises {LIMIT_SECONDS / 60:.0f} minutes; so this is the short form "
        f"({len(QUICK.domains)} domains instead of {len(FULL.domains)}). --full runs the long one"
    )
