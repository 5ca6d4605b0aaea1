"""``asr export``: what another engine needs to serve the routed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.options import BaseOption, JsonOption, ModelArgument
from asr.cli.output import command_line, counted, fail, note, size, write_line
from asr.errors import AsrError, ConfigError, unknown

if TYPE_CHECKING:
    from asr.serve.export import VllmExport


def export(
    model: ModelArgument,
    to: Annotated[
        str,
        typer.Option("--to", metavar="ENGINE", help="vllm.", show_default=False),
    ],
    max_loras: Annotated[
        int | None,
        typer.Option(
            "--max-loras",
            min=1,
            metavar="N",
            help="Most adapters in one batch, which is memory that vLLM sets aside; default all.",
            show_default=False,
        ),
    ] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    r"""Print the command that serves MODEL in vLLM, every adapter in it and the router inside.

    vLLM's limits are checked first: each problem is a line on standard error, and the exit code is
    2 if vLLM could not serve MODEL. Nothing is loaded, copied or started.

    \b
    asr export MODEL --to vllm
    asr export MODEL --to vllm --json
    """
    from asr.serve.export import TARGETS, export_vllm

    if to not in TARGETS:
        raise ConfigError(unknown("engine", to, TARGETS))
    made = export_vllm(model, base=base, max_loras=max_loras, say=note)
    if as_json:
        write_line(json.dumps(_record(model, to, made), ensure_ascii=False, indent=1))
    else:
        for line in made.notes:
            note(f"note: {line}")
        if not made.problems:
            _show(model, made)
        for line in made.problems:
            fail(line)
    raise typer.Exit(AsrError.exit_code if made.problems else 0)


def _show(model: Path, made: VllmExport) -> None:
    """Print a script: all but the command is a comment."""
    proxy = command_line(["serve", model.absolute(), "--engine-url", "http://HOST:PORT"])
    adapters = f"{counted(len(made.adapters), 'adapter')} to rank {made.max_lora_rank}"
    for line in (
        f"# {adapters}, {made.max_loras} at once in at least {size(made.slot_bytes)}; "
        "vLLM's Python needs asr as well",
        made.shell,
        f"# beside an engine that takes no --middleware: {proxy}",
    ):
        write_line(line)


def _record(model: Path, to: str, made: VllmExport) -> dict[str, object]:
    usable = not made.problems
    return {
        "model": str(model),
        "engine": to,
        "environment": made.environment if usable else None,
        "command": made.command if usable else None,
        "served_name": made.served_name,
        "adapters": {name: str(folder) for name, folder in made.adapters.items()},
        "max_lora_rank": made.max_lora_rank,
        "max_loras": made.max_loras,
        "slot_bytes": made.slot_bytes,
        "notes": made.notes,
        "problems": made.problems,
    }
