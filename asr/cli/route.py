"""``asr route``: where prompts would go, without answering them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from asr.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    FileOption,
    JsonOption,
    ModelArgument,
    PromptsArgument,
    QuantisationOption,
    TrustOption,
    load_model,
)
from asr.cli.output import stdout, write_line
from asr.cli.prompts import Asked, described, last_words, read_prompts

if TYPE_CHECKING:
    from asr.router import Decision

_BATCH = 256


def route(
    model: ModelArgument,
    prompts: PromptsArgument = None,
    file: FileOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every domain's score and the threshold.")
    ] = False,
    as_json: JsonOption = False,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantisation: QuantisationOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Show where prompts go: domain, score, margin to the second best, probability.

    \b
    asr route MODEL "How do I reset my PIN?"
    asr route MODEL --file prompts.jsonl --json
    """
    asked = read_prompts(prompts, file)
    routed = load_model(
        model,
        base=base,
        device=device,
        dtype=dtype,
        quantisation=quantisation,
        trust_remote_code=trust_remote_code,
    )
    routed.encode(asked)  # a prompt that does not fit is found before the first batch
    decisions = [
        decision
        for start in range(0, len(asked), _BATCH)
        for decision in routed.route(asked[start : start + _BATCH])
    ]
    if as_json:
        for prompt, decision in zip(asked, decisions, strict=True):
            write_line(
                json.dumps({**described(prompt), **plain_decision(decision)}, ensure_ascii=False)
            )
        return
    console = stdout()
    console.print(_table(asked, decisions, console.width))
    if explain:
        for number, decision in enumerate(decisions, start=1):
            prefix = f"{number}: " if len(decisions) > 1 else ""
            for line in explanation(decision):
                console.print(f"{prefix}{line}", soft_wrap=True)


def plain_decision(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON values; a threshold that does not exist is null."""
    values = asdict(decision)
    if not math.isfinite(values["threshold"]):
        values["threshold"] = None
    return values


def explanation(decision: Decision) -> list[str]:
    """Return every score, the best first, what the known score is of, what the threshold did."""
    ranked = sorted(decision.scores.items(), key=lambda item: -item[1])
    lines = ["scores: " + ", ".join(f"{name} {score:.3f}" for name, score in ranked)]
    if len(decision.terms) > 1:
        terms = ", ".join(f"{name} {value:.3g}" for name, value in decision.terms.items())
        lines.append(f"known score {decision.score:.3f}, made of {terms}")
    if not math.isfinite(decision.threshold):
        lines.append("threshold: none, the router never abstains")
    elif decision.abstained:
        lines.append(
            f"threshold: {decision.threshold:.3f}, score {decision.score:.3f} is below: to the base"
        )
    else:
        lines.append(f"threshold: {decision.threshold:.3f}, reached")
    return lines


def _table(prompts: list[Asked], decisions: list[Decision], width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    routes = [_where(decision) for decision in decisions]
    # Names and numbers are never cut: the prompt gives way.
    table.add_column("route", no_wrap=True)
    for heading in ("score", "margin", "probability"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("prompt", no_wrap=True)
    room = width - max(len("route"), *(len(route) for route in routes)) - 6 - 6 - 11 - 5 * 2
    for prompt, decision, where in zip(prompts, decisions, routes, strict=True):
        words = Text(last_words(prompt))
        words.truncate(max(room, 12), overflow="ellipsis")
        table.add_row(
            where,
            f"{decision.score:.3f}",
            "-" if decision.margin is None else f"{decision.margin:.3f}",
            f"{decision.probability:.3f}",
            words,
        )
    return table


def _where(decision: Decision) -> Text:
    where = Text(decision.route, style="bold")
    if decision.abstained:
        where.append(f" (nearest: {decision.domain})", style="not bold dim")
    return where
