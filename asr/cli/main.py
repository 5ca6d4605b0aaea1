"""The ``asr`` command: its subcommands, one file each, and what they share."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from typing import Annotated

import typer

import asr
from asr.cli.add import add
from asr.cli.boundary import Boundary, Command
from asr.cli.chat import chat
from asr.cli.check import check
from asr.cli.eval import evaluate
from asr.cli.export import export
from asr.cli.generate import generate
from asr.cli.info import info
from asr.cli.probe import probe
from asr.cli.remove import remove
from asr.cli.route import route
from asr.cli.serve import serve
from asr.cli.train import train

_EPILOG = """\b
Look at data before anything is trained:
  asr check domains.yaml
  asr check legal.jsonl

\b
See where an adapter on a base would learn most:
  asr probe smollm2-135m --data legal=legal.jsonl --out probe

\b
Fine-tune a sequence of domains, add one later, or remove one:
  asr train domains.yaml --out MODEL
  asr add MODEL legal=legal.jsonl
  asr remove MODEL legal

\b
Use the routed model:
  asr chat MODEL
  asr serve MODEL
  asr export MODEL --to vllm
  asr route MODEL "How do I reset my PIN?"
  asr generate MODEL --file prompts.jsonl --out answers.jsonl

\b
Look at it:
  asr info MODEL
  asr eval MODEL --split test

asr COMMAND --help explains a command.
"""

app = typer.Typer(
    name="asr",
    cls=Boundary,
    add_completion=True,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    epilog=_EPILOG,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asr {asr.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors; also after the command.")
    ] = False,
) -> None:
    """One frozen language model, one LoRA per domain, one closed-form router between them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name, _command in (
    ("check", check),
    ("probe", probe),
    ("train", train),
    ("add", add),
    ("remove", remove),
    ("route", route),
    ("generate", generate),
    ("chat", chat),
    ("serve", serve),
    ("export", export),
    ("info", info),
    ("eval", evaluate),
):
    # "\b" keeps the line ends of what follows; docstrings hold it as two characters.
    _help = inspect.cleandoc(str(_command.__doc__)).replace("\\b\n", "\b\n")
    app.command(_name, cls=Command, help=_help)(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        argv: arguments without the program's name; default those of the process.
    """
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    code = typer.main.get_command(app).main(
        None if argv is None else list(argv), standalone_mode=False
    )
    return int(code)
