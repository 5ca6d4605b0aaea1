"""Arguments and options that several commands share, and loading a model with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.output import note
from asr.errors import AdapterError, ConfigError, unknown

if TYPE_CHECKING:
    from asr.model.routed_model import RoutedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTISATIONS = ("int8", "nf4", "none")
PROGRESS = ("text", "jsonl", "none")

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder that asr train wrote.", show_default=False)
]
PromptsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="Prompts, each in quotes; - is all of standard input.",
        show_default=False,
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="Prompts from a file: rows with prompt or messages (.jsonl, .json, .csv, .tsv, "
        ".parquet), or .txt with one a line; - reads JSON lines from standard input.",
        show_default=False,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="BASE",
        help="Where the base is, if not where training found it.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, xpu or mps.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="DTYPE", help=f"{', '.join(DTYPES[:-1])} or float16.")
]
QuantisationOption = Annotated[
    str | None,
    typer.Option(
        "--quantisation",
        metavar="KIND",
        help="Base in 8 or 4 bits: int8, nf4, or none. Default: as in training.",
        show_default=False,
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the base.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ProgressOption = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="KIND",
        help="What is printed meanwhile: text, jsonl (one event a line, for programs) or none.",
    ),
]


def load_model(
    path: Path,
    *,
    adapter: str = "auto",
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantisation: str | None = None,
    trust_remote_code: bool = False,
) -> RoutedModel:
    """Load a routed model with the options above; what it says goes to standard error.

    What can be checked without the heavy libraries is checked before they are imported.

    Raises:
        ConfigError: an unknown dtype or quantisation.
        AdapterError: ``adapter`` is not the name of one.
        AsrError: see :meth:`asr.model.routed_model.RoutedModel.from_pretrained`.
    """
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    if quantisation is not None and quantisation not in QUANTISATIONS:
        raise ConfigError(unknown("quantisation", quantisation, QUANTISATIONS))
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest

    manifest = Manifest.load(ModelDirectory.open(path).path)
    adapters = ["auto", "base", *manifest.routed]
    if adapter not in adapters:
        raise AdapterError(unknown("adapter", adapter, adapters))
    from asr.model.routed_model import RoutedModel

    return RoutedModel.from_pretrained(
        path,
        base=base,
        device=device,
        dtype=dtype,
        quantisation=quantisation,  # type: ignore[arg-type]  # checked above
        trust_remote_code=trust_remote_code,
        say=note,
    )


def refuse_given(context: typer.Context, names: Iterable[str], option: str, why: str) -> None:
    """Refuse options on the command line that would do nothing.

    Args:
        context: of the command.
        names: of its parameters.
        option: the option beside which they do nothing.
        why: the reason, a sentence.

    Raises:
        ConfigError: one of them was given; names all that were.
    """
    given = []
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given.append(f"--{name.replace('_', '-')}")
    if given:
        raise ConfigError(f"with {option} leave out {', '.join(given)}: {why}")
