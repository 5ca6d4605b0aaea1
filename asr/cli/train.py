"""``asr train``: train a sequence of domains into a routed model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import ProgressOption, TrustOption
from asr.errors import ConfigError


def train(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="YAML file of base and domains.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="MODEL", help="Folder of the routed model.", show_default=False
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that replace those of the file, e.g. training.epochs=3.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on in MODEL: finished domains are kept, new ones of CONFIG are added.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the routed model in MODEL and start again.")
    ] = False,
    progress: ProgressOption = "text",
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Train the domains of CONFIG, one after the other, into the folder MODEL.

    \b
    asr train domains.yaml --out MODEL
    asr train domains.yaml training.epochs=3 seed=1 --out MODEL2
    asr train domains.yaml --out MODEL --resume
    """
    from asr.train.config_file import load_config

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; give one of them")
    loaded = load_config(config, overrides or [])
    from asr.cli.training import run_training

    trust = ["--trust-remote-code"] if trust_remote_code else []
    shown = [] if progress == "text" else ["--progress", progress]
    run_training(
        loaded,
        out,
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        progress=progress,
        again=["train", config, *(overrides or []), "--out", out, "--resume", *shown, *trust],
    )
