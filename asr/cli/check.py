"""``asr check``: what is in the data, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.options import JsonOption, TrustOption
from asr.cli.output import is_main_process, note, stdout, write_line
from asr.errors import AsrError, ConfigError, DataError

if TYPE_CHECKING:
    from asr.base.tokenizer import BaseTokenizer
    from asr.cli.checked import Plan

CONFIG_SUFFIXES = (".yaml", ".yml")


def check(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|FILE",
            help="A training config (.yaml), or one data file or hub data set.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that replace those of CONFIG, as for asr train.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="Base whose tokenizer and chat template are used; default the config's, or the "
            "built-in one where it is on this machine.",
            show_default=False,
        ),
    ] = None,
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Format of FILE's rows; default by its keys.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            "--test",
            metavar="FILE",
            help="Test file, checked for prompts that FILE has too.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Read all data of CONFIG, or of FILE, and say what training would make of it.

    Bad rows are listed as file:line and end with exit code 2. Weights are not loaded.

    \b
    asr check domains.yaml
    asr check legal.jsonl --test legal.test.jsonl
    asr check legal.csv --format prompt-completion --base smollm2-135m
    """
    from asr.cli.checked import plan_of_config, plan_of_file, read_plan

    if target.suffix.lower() in CONFIG_SUFFIXES:
        for option, value in (("--format", fmt), ("--test", test)):
            if value is not None:
                raise ConfigError(
                    f"{option} is for a data file; {target} names its own, per domain"
                )
        plan = plan_of_config(target, overrides or [])
    else:
        if overrides:
            raise ConfigError(
                f"'{overrides[0]}' changes a setting, and {target} is a data file without any; "
                "settings go with a config (.yaml)"
            )
        plan = plan_of_file(str(target), fmt, test)
    domains = read_plan(plan)
    encoder = _encoder(plan, base, trust_remote_code)
    from asr.cli.checked import inspect_domains

    report = inspect_domains(plan, domains, encoder)
    if not is_main_process():
        return
    if json_output:
        import json

        write_line(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
        return
    from asr.cli.check_view import show

    show(report, stdout())


def _encoder(plan: Plan, base: str | None, trust_remote_code: bool) -> BaseTokenizer | None:
    """Return the tokenizer to measure with; None where no base is named and none is at hand."""
    from asr.base.tokenizer import builtin_at_hand, load_base_tokenizer

    named = base or plan.base
    name = named or builtin_at_hand()
    if name is None:
        return None
    try:
        return load_base_tokenizer(name, trust_remote_code=trust_remote_code, say=note)
    except AsrError as error:
        if named is not None:
            raise
        raise DataError(f"{error}; name another base with --base") from error
