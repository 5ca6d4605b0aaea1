"""What ``asr train`` and ``asr add`` share: run the sequence, and show what happens."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.cli.boundary import StoppedError
from asr.cli.display import make_display
from asr.cli.event_lines import make_event_lines, work_of, write_finished
from asr.cli.options import PROGRESS
from asr.cli.output import command_line, counted, is_main_process, seconds, stdout
from asr.cli.pace import Pace
from asr.errors import ConfigError, DirectoryError, unknown
from asr.train.config import TrainConfig


def run_training(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    extend: bool = False,
    from_scratch: bool = False,
    compare_finished: bool = True,
    progress: str = "text",
    again: Sequence[Any],
) -> None:
    """Train, showing progress, the results and what to type next.

    Args:
        config: what to train.
        out: the model directory.
        resume: see :func:`asr.train.sequence.train_sequence`.
        overwrite: see there.
        trust_remote_code: see there.
        extend: the config's one domain gets more data (:func:`asr.train.extend.extend_domain`).
        from_scratch: see there.
        compare_finished: see :func:`asr.train.sequence.train_sequence`.
        progress: what is printed, one of :data:`asr.cli.options.PROGRESS`.
        again: arguments of the command that goes on after an interruption.

    Raises:
        ConfigError: an unknown ``progress``.
        AsrError: see :func:`asr.train.sequence.train_sequence`.
        StoppedError: Ctrl-C.
    """
    if progress not in PROGRESS:
        raise ConfigError(unknown("progress", progress, PROGRESS))
    console = stdout()
    console.quiet = not is_main_process() or progress != "text"
    # Before the heavy imports: they take seconds.
    names = ", ".join(config.domains)
    if extend:
        _say(console, f"more data for {names} in {out}")
    else:
        _say(console, f"{counted(len(config.domains), 'domain')} ({names}) into {out}")
    try:
        from asr.train.extend import extend_domain
        from asr.train.sequence import train_sequence

        view = make_event_lines() if progress == "jsonl" else make_view(console, out)
        common: dict[str, Any] = {
            "resume": resume,
            "trust_remote_code": trust_remote_code,
            "watcher": view,
        }
        try:
            if extend:
                manifest = extend_domain(config, out, from_scratch=from_scratch, **common)
            else:
                manifest = train_sequence(
                    config, out, overwrite=overwrite, compare_finished=compare_finished, **common
                )
        finally:
            view.close()
        if progress == "jsonl" and is_main_process():
            write_finished(out, list(manifest.domains))
        elif not console.quiet:
            _show_end(console, out, list(manifest.domains))
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped; finished domains and the last checkpoint are kept. Go on with:\n"
            f"  {command_line(again)}"
        ) from None


def make_view(console: Console, out: Path) -> Any:
    """Return the watcher that shows a run (made here: its base class needs torch)."""
    from asr.adapters import Placement
    from asr.eval.matrix import EvalMatrix
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest
    from asr.train.adapter import TrainingResult
    from asr.train.events import Watcher
    from asr.train.prepare import PreparedDomain

    class TrainView(Watcher):
        """Shows a run on a console."""

        def __init__(self) -> None:
            self.display = make_display(console)
            self.pace = Pace({})

        def close(self) -> None:
            self.display.close()

        def say(self, message: str) -> None:
            _say(console, message)

        def planned(self, domains: list[PreparedDomain], todo: list[str]) -> None:
            chosen = [domain for domain in domains if domain.name in todo]
            self.pace = Pace({domain.name: work_of(domain) for domain in chosen})
            directory = ModelDirectory(out)
            manifest = Manifest.load(out)
            contract = manifest.contract
            _say(
                console,
                f"router: reads the states entering layer {contract.layer} of "
                f"{manifest.base.n_layers}; prompts shown {', '.join(contract.views)}",
            )
            finished = [domain.name for domain in domains if domain.name not in todo]
            if finished:
                _say(console, f"skipped, because finished: {', '.join(finished)}")
            if not chosen:
                _say(console, "nothing to train; the router is solved again")
                return
            console.print()
            console.print(_plan_table(chosen))
            for line in _rules(chosen):
                _say(console, line)
            for domain in chosen:
                if directory.checkpoint(domain.name).is_dir():
                    _say(console, f"{domain.name}: goes on from its last checkpoint")
            for line in _reports(chosen):
                _say(console, line)
            console.print()

        def domain_started(self, domain: PreparedDomain, position: int, total: int) -> None:
            self.pace.start(domain.name)
            self.display.begin(f"{position + 1}/{total} {domain.name}")

        def step(self, step: int, steps: int, loss: float | None) -> None:
            self.pace.step(step)
            self.display.step(step, steps, loss, self.pace)

        def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
            self.pace.trained()
            line = f"{domain.name}: {counted(result.steps, 'step')}, loss {result.loss:.3f}"
            if result.tokens:
                line += f", {result.tokens_per_second:,.0f} tokens/s"
            _say(console, f"{line}, {seconds(result.seconds)}")

        def progress(self, what: str, done: int, total: int) -> None:
            self.display.stage(what, done, total)

        def evaluated(self, domain: str, matrices: dict[str, EvalMatrix]) -> None:
            for matrix in matrices.values():
                for line in matrix_row(matrix, console.width):
                    _say(console, f"  {line}")

    def _where(placement: Placement, rank: int) -> str:
        passes = ", two passes" if placement.passes == "two" else ""
        ranks = placement.ranks_at(rank)
        same = min(ranks) == max(ranks)
        shown = f"rank {ranks[0]}" if same else f"ranks {min(ranks)} to {max(ranks)}"
        return f"{placement.kind}, {shown}{passes}"

    def _plan_table(domains: list[PreparedDomain]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("domain", overflow="fold", min_width=len("domain"))
        for heading in ("train", "dev", "steps", "batch", "rate"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("placement")
        table.add_column("parameters", justify="right", no_wrap=True)
        for domain in domains:
            data, settings = domain.data, domain.settings
            parameters = f"{domain.placement.parameters(domain.lora.rank):,}"
            where = _where(domain.placement, domain.lora.rank)
            if data is None or settings is None:
                cells = ["trained", "", "", "", ""]
            else:
                cells = [
                    str(len(data.train)),
                    str(len(data.dev)),
                    str(settings.steps(len(data.encoded.rows))),
                    str(settings.batch_size),
                    f"{settings.learning_rate:g}",
                ]
            table.add_row(Text(domain.name, style="bold"), *cells, where, parameters)
        return table

    def _rules(domains: list[PreparedDomain]) -> list[str]:
        """Say which values were chosen by a rule, equal ones once."""
        said: dict[str, list[str]] = {}
        for domain in domains:
            if domain.data is None or domain.settings is None:
                continue
            if domain.config.training.batch_size is None:
                line = f"batch {domain.settings.batch_size}: by the number of steps"
                said.setdefault(line, []).append(domain.name)
            if len(domain.settings.views) > 1:
                shown = " and ".join(domain.settings.views)
                line = f"prompts trained on {shown}, an equal share of the epochs each"
                said.setdefault(line, []).append(domain.name)
            if domain.config.training.learning_rate is None:
                modules = counted(len(domain.placement.modules), "adapted module")
                line = f"rate {domain.settings.learning_rate:g}: by placement ({modules}) and batch"
                said.setdefault(line, []).append(domain.name)
        return [
            line if len(names) == len(domains) else f"{line}, {', '.join(names)}"
            for line, names in said.items()
        ]

    def _reports(domains: list[PreparedDomain]) -> list[str]:
        lines = []
        for domain in domains:
            if domain.data is None:
                continue
            report, longest = domain.data.encoded.report, domain.config.training.max_length
            parts = []
            if report.truncated:
                parts.append(f"{counted(report.truncated, 'example')} shortened")
            if report.dropped:
                first = ", ".join(report.dropped[:3])
                more = len(report.dropped) - 3
                tail = f" and {more} more" if more > 0 else ""
                parts.append(f"{counted(len(report.dropped), 'example')} left out ({first}{tail})")
            if parts:
                lines.append(f"{domain.name}: {', '.join(parts)}, to max_length {longest}")
        return lines

    return TrainView()


def matrix_row(matrix: Any, width: int) -> list[str]:
    """Return the newest row of a matrix as text: routed / oracle / base per domain."""

    def number(value: float) -> str:
        return "-" if np.isnan(value) else f"{value:.2f}"

    cells = [
        f"{name} {number(matrix.routed[-1, j])} / {number(matrix.oracle[-1, j])} / "
        f"{number(matrix.base[j])}".replace(" ", "\N{NO-BREAK SPACE}")
        for j, name in enumerate(matrix.domains)
    ]
    routing = matrix.routing()
    if routing is not None:
        cells.append(f"routing {routing.mean:.2f}".replace(" ", "\N{NO-BREAK SPACE}"))
    text = f"{matrix.kind}, routed / oracle / base: " + "; ".join(cells)
    lines = _wrapped(text, max(width - 2, 40))
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _say(console: Console, message: str) -> None:
    style = "yellow" if message.startswith("warning:") else ""
    console.print(Text(message, style=style), soft_wrap=True)


def _show_end(console: Console, out: Path, names: list[str]) -> None:
    from asr.cli.tables import print_matrices
    from asr.eval.history import load_matrices
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest
    from asr.router import load_router

    directory = ModelDirectory(out)
    try:
        matrices = load_matrices(directory)
    except DirectoryError as error:
        matrices = {}
        _say(console, f"warning: {error}")
    if matrices:
        console.print()
        print_matrices(matrices, console)
    report = load_router(directory.router, Manifest.load(out).contract.hash).router.report
    for warning in report.warnings:
        _say(console, f"warning: {warning}")
    _say(console, f"\nmodel: {out} ({counted(len(names), 'domain')})\nnext:")
    name = "NEW=NEW.jsonl"
    for parts, meaning in (
        (["chat", out], "talk with it"),
        (["route", out, "a prompt"], "see where a prompt goes"),
        (["eval", out], "tables and figures of the dev sets"),
        (["add", out, name], "train one more domain"),
    ):
        _say(console, f"  {command_line(parts):36}  {meaning}")
