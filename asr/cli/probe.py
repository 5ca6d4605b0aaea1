"""``asr probe``: where an adapter on a base would learn most, before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import (
    DTYPES,
    DeviceOption,
    DtypeOption,
    JsonOption,
    TrustOption,
)
from asr.cli.output import is_main_process, note, stderr, stdout, write_line
from asr.errors import ConfigError, DataError, unknown

QUANTISATIONS = ("int8", "nf4")


def probe(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="Folder, hub id, .gguf file, or built-in: smollm2-135m.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=DATA",
            help="Examples of a domain; may be repeated. Without it: a generic text of ours.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", help="Examples that each seed draws.")
    ] = 32,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="How many draws.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for probe.json, probe.png and placement.yaml.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", help="Rows of the table.")] = 12,
    rank: Annotated[int, typer.Option("--rank", metavar="R", help="Rank of the adapter.")] = 8,
    alpha: Annotated[
        float, typer.Option("--alpha", metavar="A", help="Scale: the update is times A / R.")
    ] = 16.0,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by A / sqrt(R) instead.")] = False,
    init: Annotated[
        str,
        typer.Option(
            "--init",
            metavar="NAME",
            help="How the adapter starts: true (PEFT's default), gaussian, pissa, ...",
        ),
    ] = "true",
    per: Annotated[
        str,
        typer.Option(
            "--per",
            metavar="WHAT",
            help="sample (energy of each, averaged) or batch (of a batch's mean gradient).",
        ),
    ] = "sample",
    loss: Annotated[
        str,
        typer.Option(
            "--loss", metavar="WHAT", help="answer (its tokens only) or full (prompt and answer)."
        ),
    ] = "answer",
    max_length: Annotated[
        int, typer.Option("--max-length", metavar="N", help="Tokens of an example.")
    ] = 512,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="Examples together.")
    ] = 8,
    kappa: Annotated[
        bool | None,
        typer.Option(
            "--kappa/--no-kappa",
            help="KappaTune's ranks: an SVD of every weight. Default: up to 1 billion parameters.",
            show_default=False,
        ),
    ] = None,
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Format of the files' rows; default by their keys.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The first seed.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantisation: Annotated[
        str | None,
        typer.Option(
            "--quantisation",
            metavar="KIND",
            help="Base in 8 or 4 bits: int8 or nf4. Default: as it is.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Rank the modules of BASE by the gradient energy that an adapter on each would receive.

    One backward pass over a few examples, no training. Beside it, on the same examples: PLoP's
    alignment score, the gradient norm per parameter, KappaTune's rank.

    \b
    asr probe smollm2-135m
    asr probe smollm2-135m --data legal=legal.jsonl --data sums=sums.jsonl --out probe
    """
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    if quantisation is not None and quantisation not in QUANTISATIONS:
        raise ConfigError(unknown("quantisation", quantisation, QUANTISATIONS))
    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    files = _domain_files(data or [], fmt)
    if out is not None:
        from asr.cli.probe_files import check_out

        check_out(out)
    from asr.adapters.lora import LoraSettings
    from asr.adapters.probe.run import probe_placement
    from asr.cli.display import make_display

    settings = LoraSettings(rank=rank, alpha=alpha, use_rslora=rslora)
    settings = dataclasses.replace(settings, init_lora_weights=_initialisation(init))
    display = make_display(stderr())
    try:
        result = probe_placement(
            base,
            files or None,
            samples=samples,
            seeds=seeds,
            seed=seed,
            lora=settings,
            per=per,
            loss=loss,
            max_length=max_length,
            batch_size=batch_size,
            kappa=kappa,
            fmt=fmt,
            device=device,
            dtype=dtype,
            quantisation=quantisation,  # type: ignore[arg-type]  # checked above
            trust_remote_code=trust_remote_code,
            progress=display.stage,
            say=note,
        )
    finally:
        display.close()
    if not is_main_process():
        return
    written: list[Path] = []
    if out is not None:
        from asr.cli.probe_files import write_probe

        written = write_probe(result, out)
    if json_output:
        record = {**result.model_dump(), "written": [str(path) for path in written]}
        write_line(json.dumps(record, ensure_ascii=False, indent=1))
        return
    from asr.cli.probe_view import show

    show(result, stdout(), top)
    for path in written:
        stdout().print(f"wrote {path}", soft_wrap=True)
    if not written:
        stdout().print(
            "nothing was written; --out DIR keeps this as probe.json, a heat map, and a config "
            "fragment for asr train",
            soft_wrap=True,
        )


def _domain_files(arguments: list[str], fmt: str | None) -> dict[str, str]:
    """Return the data of each domain by its name: an absolute path, or ``hub:...``.

    Raises:
        ConfigError: not ``NAME=DATA``, a name that is none, or one that stands twice.
        DataError: an unknown format, or one without a file.
    """
    from asr.cli.named_data import named_data
    from asr.data.shapes import FORMATS
    from asr.model.names import check_domain_name

    if fmt is not None and fmt not in FORMATS:
        raise DataError(unknown("data format", fmt, FORMATS))
    if fmt is not None and not arguments:
        raise DataError("--format is for data files; name them with --data NAME=DATA")
    files = named_data(arguments)
    for name in files:
        check_domain_name(name)
    return files


def _initialisation(name: str) -> bool | str:
    """``true`` and ``false`` are values of PEFT's option, the others are names."""
    return {"true": True, "false": False}.get(name.lower(), name)
