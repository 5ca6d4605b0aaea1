"""``asr info``: what is in a routed model directory. Needs neither torch nor the base."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.cli.options import JsonOption, ModelArgument
from asr.cli.output import command_line, counted, seconds, size, stdout, write_line
from asr.errors import AsrError, RouterError

if TYPE_CHECKING:
    from asr.model.manifest import DomainEntry, Manifest
    from asr.router import RouterReport


def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    r"""Show what MODEL holds: base, domains, router, and whether its files are intact.

    Exits with 2 if files are missing or changed (listed as problems), with 0 otherwise.

    \b
    asr info MODEL
    asr info MODEL --json
    """
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest
    from asr.model.stored import background_problem, read_router, unrouted

    directory = ModelDirectory.open(model)
    manifest = Manifest.load(directory.path)
    problems = directory.verify(manifest)
    background = background_problem(directory, manifest)
    if background is not None:
        problems.append(background)
    report: RouterReport | None = None
    if manifest.routed:
        try:
            router = directory.current(directory.router, manifest)
            fitted = read_router(router, manifest.contract).router
            report = fitted.report
            problems += unrouted(manifest, fitted.names)
        except RouterError as error:
            problems.append(str(error))
    if as_json:
        record = {
            "model": str(model),
            "manifest": manifest.model_dump(mode="json"),
            "router": None if report is None else report.to_dict(),
            "problems": problems,
        }
        write_line(json.dumps(record, ensure_ascii=False, indent=1))
        _end(problems)
    console = stdout()
    _show_model(console, model, manifest)
    if manifest.domains:
        console.print()
        for table in _domain_tables(manifest.domains):
            console.print(table)
            console.print()
    else:
        console.print("\nno domains yet\n")
    if report is not None:
        for line in _router_lines(report):
            console.print(Text(line), soft_wrap=True)
        console.print()
    _show_state(console, model, manifest, problems)
    _end(problems)


def _end(problems: list[str]) -> NoReturn:
    """Leave with the exit code that a script asks for."""
    raise typer.Exit(AsrError.exit_code if problems else 0)


def _show_model(console: Console, model: Path, manifest: Manifest) -> None:
    base, contract, versions = manifest.base, manifest.contract, manifest.versions
    found = base.source if base.revision is None else f"{base.source}, {base.revision}"
    expansion = contract.expansion.dimension
    passes = ", routed in a pass of its own" if manifest.two_pass else ""
    features = (
        f"layer {contract.layer} of {base.n_layers}{passes}, "
        f"expansion {expansion or 'none'}, prompts to {contract.truncation.max_length} tokens"
    )
    rows = {
        "model": str(model),
        "base": f"{base.name} ({found})",
        "": f"{base.architecture}, {base.n_layers} layers, hidden {base.hidden_size}",
        "fingerprint": base.fingerprint,
        "features": features,
        "views": ", ".join(contract.views),
        "background": "none"
        if manifest.background is None
        else f"{manifest.background.prompts} prompts that the base wrote",
        "contract": contract.hash,
        "trained on": f"{manifest.numeric.device}, {manifest.numeric.dtype}, seed {manifest.seed}",
        "made": f"{manifest.created} with asr {versions.asr}, torch {versions.torch}, "
        f"transformers {versions.transformers}, peft {versions.peft}",
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in rows.items():
        grid.add_row(Text(key, style="bold"), Text(value))
    console.print(grid)


def _domain_tables(domains: dict[str, DomainEntry]) -> list[Table]:
    """Three tables, so that long names and large numbers fit into 80 columns."""
    data = _table("domain", "status", "train", "dev", "placement")
    adapters = _table("domain", "steps", "batch", "rate", "parameters", "size", "sha256")
    times = _table("domain", "training", "tokens/s", "router", "evaluation")
    for name, entry in domains.items():
        counts, training, adapter, spent = entry.data, entry.training, entry.adapter, entry.timings
        shown = Text(name, style="bold")
        data.add_row(
            shown,
            entry.status,
            _or_dash(None if counts is None else counts.train),
            _or_dash(None if counts is None else counts.dev),
            _placement(entry),
        )
        adapters.add_row(
            shown,
            _or_dash(_steps(entry)),
            _or_dash(training.get("batch_size")),
            _rate(training.get("learning_rate")),
            "-" if adapter is None else f"{adapter.parameters:,}",
            "-" if adapter is None else size(adapter.bytes),
            "-" if adapter is None else adapter.sha256[:8],
        )
        times.add_row(
            shown,
            _time(spent.get("train")),
            "-" if not entry.tokens_per_second else f"{entry.tokens_per_second:,.0f}",
            _time(spent.get("statistics")),
            _time(spent.get("evaluation")),
        )
    versions = _versions(domains)
    return [data, adapters, times, *([] if versions is None else [versions])]


def _versions(domains: dict[str, DomainEntry]) -> Table | None:
    """Every adapter that a domain with more than one ever used, oldest first."""
    table = _table("domain", "version", "train", "dev", "state", "sha256")
    for name, entry in domains.items():
        if not entry.extensions:
            continue
        datas = [entry.data, *(extension.data for extension in entry.extensions)]
        for adapter, data in zip(entry.versions, datas, strict=False):
            in_use = adapter == entry.adapter
            table.add_row(
                Text(name, style="bold"),
                str(adapter.version),
                _or_dash(None if data is None else data.train),
                _or_dash(None if data is None else data.dev),
                "in use" if in_use else "kept",
                adapter.sha256[:8],
            )
        pending = entry.unfinished_extension
        if pending is not None and pending.status != "switched":
            table.add_row(
                Text(name, style="bold"),
                str(pending.version),
                _or_dash(pending.data.train),
                _or_dash(pending.data.dev),
                pending.status,
                "-" if pending.adapter is None else pending.adapter.sha256[:8],
            )
    return table if table.row_count else None


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        words = heading in ("domain", "status", "placement", "state", "sha256")
        table.add_column(
            heading,
            justify="left" if words else "right",
            no_wrap=heading not in ("domain", "placement"),
            min_width=min(16, len(heading) + 6) if heading == "domain" else None,
            overflow="fold",
        )
    return table


def _steps(entry: DomainEntry) -> int | None:
    """The optimizer steps that its settings come to."""
    training, data = entry.training, entry.data
    most = training.get("max_steps")
    if isinstance(most, int):
        return most
    batch, epochs = training.get("batch_size"), training.get("epochs")
    if data is None or data.train is None or not isinstance(batch, int) or batch < 1:
        return None
    if not isinstance(epochs, int):
        return None
    views = training.get("views")
    shown = len(views) if isinstance(views, list) and views else 1
    rows = (data.train - (data.dropped or 0)) * shown
    return math.ceil(math.ceil(rows / batch) * epochs / shown)


def _placement(entry: DomainEntry) -> str:
    placement = entry.placement
    if not placement:
        return "-"
    modules, ranks = placement.get("modules"), placement.get("ranks")
    count = len(modules) if isinstance(modules, list) else 0
    where = counted(count, "module")
    if placement.get("kind") == "dominant" and isinstance(modules, list) and count == 1:
        where = str(modules[0])
    rank = f"rank {placement.get('rank')}"
    if isinstance(ranks, list) and ranks:
        few, many = min(ranks), max(ranks)
        rank = f"rank {few}" if few == many else f"ranks {few} to {many}"
    return (
        f"{placement.get('kind')}, {rank}, {where}, "
        f"{entry.passes} pass{'' if entry.passes == 'one' else 'es'}"
    )


def _router_lines(report: RouterReport) -> list[str]:
    chosen = "chosen on held-out prompts" if report.ridge_chosen else "as set"
    held = sum(report.calibration_prompts[name] for name in report.domain_accuracy)
    lines = [
        f"router: {report.solver}, ridge {report.ridge:g} ({chosen}), condition "
        f"{report.condition:.2g}, temperature {report.temperature:.3g}",
        f"right on {held} held-out: {_shares(report.accuracy) or 'none'}",
    ]
    if math.isfinite(report.threshold):
        lines.append(f"threshold {report.threshold:.3f}: below it a prompt goes to the base")
        lines.append(f"of known prompts go there: {_shares(report.rejected)}")
        for views in report.background_rejected.values():
            lines.append(f"of held-out strangers: {_shares(views)}")
        lines += _curve_lines(report)
    else:
        lines.append("threshold: none, no prompt goes to the base")
    return lines + [f"warning: {line}" for line in report.warnings]


def _shares(views: Mapping[str, float]) -> str:
    """Shares per view kind; the numbered ones of a kind (framed2, ...) as one range."""
    kinds: dict[str, list[float]] = {}
    for view, value in views.items():
        kinds.setdefault(view.rstrip("0123456789"), []).append(value)
    return ", ".join(
        f"{kind} {min(values):.3f}" + (f"-{max(values):.3f}" if len(values) > 1 else "")
        for kind, values in kinds.items()
    )


def _curve_lines(report: RouterReport) -> list[str]:
    """What other levels of router.abstain would cost and bring."""
    points = [point for point in report.curve if point.caught is not None]
    if not points:
        return []
    lines = ["router.abstain: known prompts lost (hardest kind), strangers caught"]
    lines += [
        f"  {point.abstain:<7g} {point.lost:.3f} {point.caught:.3f}"
        + ("  (this threshold)" if point.threshold == report.threshold else "")
        for point in points
    ]
    return lines


def _show_state(console: Console, model: Path, manifest: Manifest, problems: list[str]) -> None:
    waiting = [name for name, entry in manifest.domains.items() if entry.status != "done"]
    if waiting:
        last = waiting[-1]
        advice = f"asr train CONFIG --out {model} --resume"
        source = manifest.config.get("domains", {}).get(last, {}).get("train")
        if source is not None and len(waiting) < len(manifest.domains):
            added = command_line(["add", model, f"{last}={source}", "--resume"])
            advice += f", or where it was added with {added}"
        console.print(f"unfinished: {', '.join(waiting)}; go on with {advice}", soft_wrap=True)
    for name, entry in manifest.domains.items():
        if entry.unfinished_extension is not None:
            again = ["add", model, f"{name}={entry.unfinished_extension.data.path}"]
            console.print(
                f"unfinished: more data for {name}; go on with "
                f"{command_line([*again, '--extend', '--resume'])}",
                soft_wrap=True,
            )
    if problems:
        console.print(Text(f"{counted(len(problems), 'problem')}:", style="bold red"))
        for problem in problems:
            console.print(Text(f"  {problem}"), soft_wrap=True)
    else:
        console.print("files: all as recorded")


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


def _rate(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "-"


def _time(value: float | None) -> str:
    return "-" if value is None else seconds(value)
