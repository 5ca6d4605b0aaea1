"""``asr remove``: take a domain out of a routed model, with everything made from its data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.boundary import StoppedError
from asr.cli.options import ModelArgument
from asr.cli.output import command_line, stdout

if TYPE_CHECKING:
    from asr.model.manifest import Manifest


def remove(
    model: ModelArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The domain to remove.", show_default=False)
    ],
) -> None:
    r"""Remove a domain from MODEL, with everything that was made from its data.

    The router is solved again over the domains that stay: it is then exactly that of a model that
    never saw the domain. The training files are not touched.

    \b
    asr remove MODEL legal
    """
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest

    before = Manifest.load(ModelDirectory.open(model).path)
    from asr.train.remove import remove_domain

    try:
        deleted = remove_domain(model, name)
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped; type the same command again to finish:\n  "
            f"{command_line(['remove', model, name])}"
        ) from None
    console = stdout()
    after = Manifest.load(model)
    console.print(f"removed '{name}' from {model}; deleted:", soft_wrap=True)
    for item in deleted:
        console.print(f"  {item}", soft_wrap=True)
    if after.routed:
        console.print(
            f"router: solved over {', '.join(after.routed)}, as if '{name}' had never been there",
            soft_wrap=True,
        )
    if after.routed and after.keep_eval:
        console.print(f"scores: made again by {command_line(['eval', model])}", soft_wrap=True)
    commands = [["add", model, *add_arguments(before, name)]]
    extensions = before.domains[name].extensions if name in before.domains else []
    commands += [["add", model, f"{name}={made.data.path}", "--extend"] for made in extensions]
    again = "\n  ".join(command_line(command) for command in commands)
    console.print(
        f"to add it again:\n  {again}\n"
        f"before asr train CONFIG --out {model} --resume, take '{name}' out of CONFIG (or put it "
        "last, to train it again)",
        soft_wrap=True,
    )


def add_arguments(manifest: Manifest, name: str) -> list[str]:
    """Return what follows ``asr add MODEL`` to train the domain again as it was trained.

    Args:
        manifest: as it was before the domain was removed.
        name: the domain. Where its settings are not recorded its file is a placeholder.
    """
    config = manifest.config
    domains = config.get("domains")
    own = domains.get(name) if isinstance(domains, dict) else None
    if not isinstance(own, dict):
        return [f"{name}=DATA"]
    arguments = [f"{name}={own.get('train')}"]
    for key, value in own.items():
        common = config.get(key)
        if key in ("adapter", "training") and isinstance(value, dict) and isinstance(common, dict):
            arguments += [
                f"{key}.{field}={json.dumps(setting)}"
                for field, setting in value.items()
                if field in common and setting != common[field]
            ]
        elif key != "train" and value is not None:
            arguments.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return arguments
