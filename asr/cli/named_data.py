"""``NAME=DATA``: a domain's name and where its data lie, as commands take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asr.data.hub import locate_data
from asr.errors import ConfigError


def split_named_data(
    argument: str, option: str = "", example: str = "legal.jsonl"
) -> tuple[str, str]:
    """Return the name and the data of ``NAME=DATA``, as written.

    Args:
        argument: what the user typed.
        option: the option it was given to, for the message; empty for a plain argument.
        example: a file for the message's example.

    Raises:
        ConfigError: no ``=``, or nothing on one side of it.
    """
    name, equals, data = argument.partition("=")
    if not (name and equals and data):
        given = f"{option} '{argument}'".lstrip()
        raise ConfigError(f"{given} is not NAME=DATA; write e.g. legal={example}")
    return name, data


def named_data(
    arguments: Sequence[str], option: str = "--data", example: str = "legal.jsonl"
) -> dict[str, str]:
    """Return the data of each name: an absolute path (not looked at yet), or ``hub:...``.

    Raises:
        ConfigError: not ``NAME=DATA``, or a name that stands twice.
    """
    located: dict[str, str] = {}
    for argument in arguments:
        name, data = split_named_data(argument, option, example)
        if name in located:
            raise ConfigError(f"{option} names '{name}' twice; give one file for it")
        located[name] = locate_data(data, Path.cwd())
    return located
