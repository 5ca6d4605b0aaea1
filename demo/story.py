"""The demo's story: each domain learned twice, scored after each, then free questions.

Private adapters go through :func:`asr.train_sequence`, which adds one domain after the other to a
routed model and touches no finished one. The one LoRA goes through
:class:`asr.compare.SequentialLora`: the same rows, order, batches, rates and steps, and each domain
starts from where the one before ended. Both are scored on the same test prompts. Stopped at any
moment, the story goes on from there when told again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from asr.atomic import write_bytes, write_text
from asr.base.load import LoadedBase
from asr.cli.display import make_display
from asr.cli.output import seconds
from asr.compare import SequentialLora, finding
from asr.compare.figures import comparison_png
from asr.compare.tables import comparison_table
from asr.errors import DirectoryError
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.history import complete_matrix
from asr.eval.matrix import EvalMatrix
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.model.opening import make_forward, open_directory, require_base
from asr.model.routed_model import RoutedModel
from asr.router import RouterSettings
from asr.train.adapter import TrainingResult
from asr.train.config import TrainConfig
from asr.train.events import Watcher
from asr.train.prepare import PreparedDomain
from asr.train.sequence import train_sequence
from demo.forms import Budget, Stage
from demo.questions import Question

KIND = "templated"
"""Test prompts as the domain has them; bare ones would take as long again (``asr eval`` does)."""

ANSWER_TOKENS = 48
"""Longest answer to a free question."""


class Narrator(Watcher):
    """Shows the stages: a bar with the time left, or lines of it in a log."""

    def __init__(self, console: Console, budget: Budget) -> None:
        self.console = console
        self.budget = budget
        self.display = make_display(console)
        self._result: TrainingResult | None = None
        self._said: set[str] = set()

    def enter(self, stage: Stage, title: str) -> None:
        """A stage begins."""
        self.budget.enter(stage)
        self.display.begin(title)

    def leave(self) -> None:
        """The stage is over."""
        self.budget.leave()
        self.display.close()

    def say(self, message: str) -> None:
        """Print a fact once: every domain's run finds the same base."""
        if message not in self._said:
            self._said.add(message)
            style = "yellow" if message.startswith("warning:") else "dim"
            self.console.print(Text(message, style=style), soft_wrap=True)

    def step(self, step: int, steps: int, loss: float | None) -> None:
        """An optimizer step is done."""
        self.budget.advance(step / max(1, steps))
        self.display.step(step, steps, loss, self.budget)

    def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
        """A private adapter is published."""
        self._result = result

    def take_result(self) -> TrainingResult | None:
        """Return what the last private training measured, once."""
        result, self._result = self._result, None
        return result

    def progress(self, what: str, done: int, total: int) -> None:
        """Router statistics, or answers."""
        self.display.stage(f"{what} (all: {seconds(self.budget.left()[1])} left)", done, total)


@dataclass
class Story:
    """Everything that the demo runs on.

    Attributes:
        config: of all domains of the form.
        base: loaded once, for all of it.
        domains: prepared, in order.
        sets: their test sets.
        out: folder of this form.
        narrator: shows what happens.
    """

    config: TrainConfig
    base: LoadedBase
    domains: Sequence[PreparedDomain]
    sets: Sequence[EvalSet]
    out: Path
    narrator: Narrator

    @property
    def model(self) -> Path:
        """The routed model."""
        return self.out / "model"

    def tell(self) -> tuple[EvalMatrix, EvalMatrix]:
        """Train and score domain after domain; return the two matrices."""
        one = SequentialLora(
            self.config, self.base, self.domains, self.out / "one_lora", self.narrator
        )
        console = self.narrator.console
        for k, domain in enumerate(self.domains):
            console.print(Text(f"\n{k + 1} of {len(self.domains)}: {domain.name}", style="bold"))
            console.print(_recipe(domain), soft_wrap=True)
            self._private(k)
            self._one_lora(one, k)
            ours, other = self._score(one, k)
            console.print()
            console.print(comparison_table(ours, other))
            console.print(Text(finding(ours, other), style="bold"), soft_wrap=True)
        return ours, other

    def draw(self, ours: EvalMatrix, other: EvalMatrix) -> list[Path]:
        """Write the figure and both matrices; return the files."""
        files = [self.out / n for n in ("forgetting.png", "private.json", "one_lora.json")]
        write_bytes(files[0], comparison_png(ours, other))
        write_text(files[1], ours.to_json())
        write_text(files[2], other.to_json())
        return files

    def ask(self, questions: Sequence[Question]) -> None:
        """Answer free questions and show their routes."""
        routed = self._routed()
        console = self.narrator.console
        try:
            answers = routed.generate([q.text for q in questions], max_new_tokens=ANSWER_TOKENS)
        finally:
            routed.close()
        for question, answer in zip(questions, answers, strict=True):
            assert answer.decision is not None  # routed
            wanted = question.domain or "base"
            right = answer.adapter == wanted
            route = Text(f"  -> {answer.adapter}", style="bold green" if right else "bold red")
            what = "no domain claims it, the base answers" if wanted == "base" else "its domain"
            route.append(
                f" ({what})" if right else f" (should be: {wanted})", style="not bold default"
            )
            route.append(f"  score {answer.decision.score:.2f}", style="not bold dim")
            console.print(Text(f"\n> {question.text}"), soft_wrap=True)
            console.print(route, soft_wrap=True)
            more = " ..." if answer.finish == "length" else ""
            said = answer.text.strip().replace("\n", "\n  ")
            console.print(Text(f"  {said}{more}"), soft_wrap=True)

    # -- inside ----------------------------------------------------------------------------------

    def _private(self, k: int) -> None:
        domain, narrator = self.domains[k], self.narrator
        stage = ("private", domain.name)
        if domain.name in self._finished():
            narrator.budget.skip(stage)
            narrator.console.print("private adapter: there from an earlier start", soft_wrap=True)
        else:
            narrator.enter(stage, "private adapter")
            names = [other.name for other in self.domains[: k + 1]]
            part = {name: self.config.domains[name] for name in names}
            train_sequence(
                self.config.model_copy(update={"domains": part}),
                self.model,
                resume=True,
                watcher=narrator,
                base=self.base,
            )
            narrator.leave()
            result = narrator.take_result()
            if result is not None:  # None: only its router was left to do
                narrator.console.print(_result("private adapter: ", result), soft_wrap=True)

    def _one_lora(self, one: SequentialLora, k: int) -> None:
        domain, narrator = self.domains[k], self.narrator
        stage = ("one LoRA", domain.name)
        if domain.name in one.finished:
            narrator.budget.skip(stage)
            narrator.console.print("one LoRA: there from an earlier start", soft_wrap=True)
        elif k == 0 and one.adopt(ModelDirectory(self.model)):
            narrator.budget.skip(stage)
            narrator.console.print(
                "one LoRA: the first domain is the same training (same data, seed, steps), so the "
                "adapter is copied",
                soft_wrap=True,
            )
        else:
            narrator.enter(stage, "one LoRA")
            result = one.train(domain.name)
            narrator.leave()
            before = f"from where {self.domains[k - 1].name} ended, " if k else ""
            narrator.console.print(_result(f"one LoRA: {before}", result), soft_wrap=True)

    def _score(self, one: SequentialLora, k: int) -> tuple[EvalMatrix, EvalMatrix]:
        narrator = self.narrator
        left = seconds(narrator.budget.left()[1])
        narrator.enter(
            ("score", self.domains[k].name), f"scoring on test prompts (all: {left} left)"
        )
        sets = self.sets[: k + 1]
        size = max(len(evaluated.examples) for evaluated in sets)
        ours = EvalMatrix(KIND)
        routed = self._routed()
        try:
            with routed.directory.lock(), EvalCache(routed.directory.answers) as cache:
                evaluator = Evaluator(routed, cache, size, narrator.progress)
                routing = RouterSettings.from_dict(routed.manifest.router)
                complete_matrix(evaluator, ours, sets, routing)
        finally:
            routed.close()
        other = one.score(sets, KIND, size)
        narrator.leave()
        return ours, other

    def _finished(self) -> list[str]:
        try:
            return Manifest.load(self.model).finished
        except DirectoryError:
            return []  # nothing there yet, or something foreign, which train_sequence names

    def _routed(self) -> RoutedModel:
        opened = open_directory(self.model)
        require_base(self.base, opened.manifest)
        forward = make_forward(self.base, opened.manifest.contract.layer, opened.manifest.two_pass)
        return RoutedModel(
            self.base, opened.manifest, opened.directory, opened.router.router, forward
        )


def _result(who: str, result: TrainingResult) -> str:
    return (
        f"{who}{result.steps} steps, loss {result.loss:.3f}, "
        f"{result.tokens_per_second:,.0f} tokens/s, {seconds(result.seconds)}"
    )


def _recipe(domain: PreparedDomain) -> str:
    data, settings = domain.data, domain.settings
    assert data is not None and settings is not None
    return (
        f"{len(data.train)} examples, {settings.epochs} epochs, batch {settings.batch_size}, "
        f"learning rate {settings.learning_rate:g}, {domain.placement.kind} LoRA of rank "
        f"{domain.lora.rank}: the same for both"
    )
