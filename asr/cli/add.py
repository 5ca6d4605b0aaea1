"""``asr add``: train one more domain into a routed model, or more data into one of its domains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asr.cli.named_data import split_named_data
from asr.cli.options import ModelArgument, ProgressOption, TrustOption
from asr.data.hub import locate_data
from asr.errors import ConfigError, DirectoryError

if TYPE_CHECKING:
    from asr.model.manifest import Manifest
    from asr.train.config import TrainConfig


def add(
    model: ModelArgument,
    domain: Annotated[
        str,
        typer.Argument(
            metavar="NAME=DATA",
            help="Name of the domain, and its training file or hub data set.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the new domain, e.g. training.epochs=3 test=legal.test.jsonl; "
            "the rest is as MODEL was trained.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an add that was stopped.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="NAME is in MODEL: train a new version of it on this further data."
        ),
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="With --extend: start from a fresh adapter, not from a copy of the one in use.",
        ),
    ] = False,
    progress: ProgressOption = "text",
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Train one more domain into MODEL; the others stay as they are.

    The training files of the other domains are not needed any more. With --extend NAME is one that
    MODEL has: a new version of its adapter is trained beside the one in use, which answers until
    the switch; the router then knows the prompts of both files. The old file is not needed.

    \b
    asr add MODEL legal=legal.jsonl
    asr add MODEL legal=legal.jsonl adapter.rank=16 scorer=label test=legal.test.jsonl
    asr add MODEL legal=more.jsonl --extend
    """
    name, data = split_named_data(domain)
    if from_scratch and not extend:
        raise ConfigError(
            "--from-scratch goes with --extend: a new domain has nothing to start from"
        )
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest

    manifest = Manifest.load(ModelDirectory.open(model).path)
    if extend:
        from asr.train.extension_config import extension_config

        config = extension_config(manifest, name, data, overrides or [])
    else:
        config = extended_config(manifest, name, data, overrides or [], resume)
    from asr.cli.training import run_training

    chosen = {
        "--extend": extend,
        "--from-scratch": from_scratch,
        "--trust-remote-code": trust_remote_code,
    }
    options = [option for option, given in chosen.items() if given]
    options += [] if progress == "text" else ["--progress", progress]
    run_training(
        config,
        model,
        resume=resume or not extend,
        trust_remote_code=trust_remote_code,
        extend=extend,
        from_scratch=from_scratch,
        compare_finished=False,  # their files may be gone, or others by now
        progress=progress,
        again=["add", model, domain, *(overrides or []), "--resume", *options],
    )


def extended_config(
    manifest: Manifest, name: str, data: Path | str, overrides: list[str], resume: bool = False
) -> TrainConfig:
    """Return the config of the model's last run with one more domain at the end.

    Args:
        manifest: of the model.
        name: the new domain.
        data: its training file; relative to the current directory.
        overrides: ``key=value`` arguments.
        resume: the domain may be there, unfinished.

    Raises:
        ConfigError: a bad or reserved name, a bad override.
        DirectoryError: the name is taken, or the manifest holds no config.
    """
    from asr.model.names import check_domain_name
    from asr.train.config_file import build_config
    from asr.train.overrides import apply_overrides

    check_domain_name(name)
    raw: dict[str, Any] = copy.deepcopy(manifest.config)
    domains = raw.get("domains")
    if not isinstance(domains, dict):
        raise DirectoryError(
            "this model records no config, so it cannot be extended with asr add; use asr train "
            "with --resume"
        )
    entry = manifest.domains.get(name)
    if entry is not None and entry.status == "done":
        raise DirectoryError(
            f"domain '{name}' exists in this model already; add --extend to train it on more data, "
            f"or choose another name (taken: {', '.join(manifest.domains)})"
        )
    if name in domains and not resume:
        raise DirectoryError(
            f"domain '{name}' is in this model already, unfinished; add --resume to go on with it"
        )
    # An unfinished one goes on with the settings that it began with.
    domains[name] = {**domains.get(name, {}), "train": locate_data(str(data), Path.cwd())}
    own = [_of_domain(name, override) for override in overrides]
    set_by_hand = {tuple(o.partition("=")[0].strip().split(".")) for o in own}
    return build_config(
        apply_overrides(raw, own),
        "config",
        set_by_hand={*set_by_hand, ("domains", name)},
    )


def _of_domain(name: str, override: str) -> str:
    """Point ``training.epochs=3`` and ``scorer=label`` at the new domain.

    Left at the top, a setting would also be that of every domain added later.
    """
    from asr.train.config import DomainConfig

    first = override.partition("=")[0].strip().partition(".")[0]
    own = first in DomainConfig.model_fields and first != "train"
    return f"domains.{name}.{override.strip()}" if own else override
