"""``key=value`` arguments that change a config before it is validated.

``training.epochs=3 domains.legal.train=legal.jsonl``: the key is a dotted path, the value is YAML.
Keys are checked against the config's fields here, because a path that leads nowhere can be
corrected best while the whole argument is at hand; values are checked with the rest of the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from asr.data.hub import locate_data
from asr.errors import ConfigError, did_you_mean, unknown
from asr.model.names import check_domain_name
from asr.train.config import AdapterConfig, DomainConfig, TrainConfig
from asr.train.strict_yaml import parse_value

PATH_FIELDS = frozenset({"train", "dev", "test"})
"""Fields of a domain that hold a path."""

PROBE = ("adapter", "placement", "dominant", "probe")
"""Where a path stands deeper: in the whole config, and in a domain."""


def apply_overrides(
    raw: dict[str, Any],
    overrides: Iterable[str],
    folder: Path | None = None,
) -> dict[str, Any]:
    """Return a copy of ``raw`` (an unvalidated config) with ``overrides`` applied in order.

    Relative paths in overrides start at ``folder`` (default: the current directory, as for every
    other argument), unlike those in the file, which start at the file.

    Raises:
        ConfigError: no ``=``, an empty key or value, an unknown key (with the nearest one), a
            value that is not YAML, a domain that the config does not have and that gets no
            ``train``, or a path through something that is not a section.
    """
    folder = Path.cwd() if folder is None else folder
    result = copy.deepcopy(raw)
    arguments = [(argument, *_split(argument)) for argument in overrides]
    _check_domains(raw, arguments)
    for argument, keys, text in arguments:
        _check_keys(argument, keys)
        try:
            value = parse_value(text)
        except ConfigError as error:
            raise ConfigError(
                f"override '{argument}': {error}; quote the value to take it as text: "
                f"{'.'.join(keys)}='\"...\"'"
            ) from error
        if value is None and text.strip() not in {"null", "Null", "NULL", "~"}:
            raise ConfigError(f"override '{argument}' has no value; write {'.'.join(keys)}=null")
        _place(result, argument, keys, _absolute(keys, value, folder))
    return result


def _split(argument: str) -> tuple[list[str], str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(
            f"override '{argument}' has no '='; write key=value, e.g. training.epochs=3"
        )
    keys = key.strip().split(".")
    if not all(keys):
        raise ConfigError(
            f"override '{argument}' has an empty key; write key=value, e.g. training.epochs=3"
        )
    if not value.strip():
        raise ConfigError(f"override '{argument}' has no value; write {key.strip()}=null")
    return keys, value


def _check_domains(raw: dict[str, Any], arguments: list[tuple[str, list[str], str]]) -> None:
    domains = raw.get("domains")
    known = set(domains) if isinstance(domains, dict) else set()
    for _, keys, _ in arguments:
        if keys == ["domains"]:
            return  # replaced as a whole: validation looks at what it then holds
        if keys[0] == "domains" and (len(keys) == 2 or keys[2] == "train"):
            known.add(check_domain_name(keys[1]))
    for argument, keys, _ in arguments:
        if keys[0] == "domains" and keys[1] not in known:
            raise ConfigError(
                f"override '{argument}': {unknown('domain', keys[1], known)} (a new one needs "
                f"domains.{keys[1]}.train=PATH)"
            )


def _check_keys(argument: str, keys: list[str]) -> None:
    sections: tuple[type[BaseModel], ...] = (TrainConfig,)  # more than one: a key of any of them
    walked: list[str] = []
    rest = list(keys)
    while rest:
        where = ".".join(walked)
        if not sections:
            raise ConfigError(
                f"override '{argument}': '{where}' is a single value, it has no '{rest[0]}'"
            )
        key = rest.pop(0)
        known = {name: section for section in sections for name in section.model_fields}
        if key not in known:
            if AdapterConfig in sections:
                from asr.adapters.variants import refused_key  # heavy, and seldom needed

                reason = refused_key(key)
                if reason is not None:
                    raise ConfigError(f"override '{argument}': {reason}")
            near = did_you_mean(key, known)
            listing = ", ".join(known)
            place = f"'{where}'" if where else "the config"
            raise ConfigError(
                f"override '{argument}': unknown key '{'.'.join([*walked, key])}'{near}; {place} "
                f"has: {listing}"
            )
        walked.append(key)
        if walked == ["domains"]:
            sections = (DomainConfig,)
            walked += rest[:1]
            rest = rest[1:]
        else:
            sections = _sections_of(known[key], key)


def _sections_of(section: type[BaseModel], key: str) -> tuple[type[BaseModel], ...]:
    """The sections that may stand under a key; none where it holds a single value."""
    annotation = section.model_fields[key].annotation
    return tuple(
        candidate
        for candidate in (annotation, *get_args(annotation))
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    )


def _place(tree: dict[str, Any], argument: str, keys: list[str], value: Any) -> None:
    here = tree
    for depth, key in enumerate(keys[:-1], start=1):
        below = here.get(key)
        # An absent or empty section is filled; a placement by name gives way to one by modules.
        if below is None or (key == "placement" and isinstance(below, str)):
            below = here[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"override '{argument}': '{'.'.join(keys[:depth])}' is {below!r} in the config, "
                "not a section with keys"
            )
        here = below
    here[keys[-1]] = value


def _absolute(keys: list[str], value: Any, folder: Path) -> Any:
    """Paths on the command line start where the user stands."""
    own = keys[2:] if keys[0] == "domains" else keys
    if own[:1] == ["adapter"]:
        return _nested(own, value, folder)
    if not isinstance(value, str):
        return value
    if len(keys) == 3 and keys[0] == "domains" and keys[2] in PATH_FIELDS:
        return locate_data(value, folder)
    if keys == ["base"]:
        return locate_base(value, folder)
    return value


def _nested(keys: list[str], value: Any, folder: Path) -> Any:
    """Locate the probe of a placement in a value that holds it, at whatever depth."""
    below = PROBE[len(keys) :]
    return locate_probe(value, below, folder) if tuple(keys) == PROBE[: len(keys)] else value


def locate_probe(value: Any, keys: Sequence[str], folder: Path) -> Any:
    """Return ``value`` with the path that stands under ``keys``, if any, made absolute."""
    if not keys:
        path = isinstance(value, str) and value
        return str(folder / Path(value).expanduser()) if path else value
    if not isinstance(value, dict) or keys[0] not in value:
        return value
    return {**value, keys[0]: locate_probe(value[keys[0]], keys[1:], folder)}


def locate_base(base: str, folder: Path) -> str:
    """Return ``base`` as a path from ``folder`` if it is one there, else as it is (a hub id, ...).

    A value that cannot be anything but a path (``./x``, ``../x``, ``~/x``, ``x.gguf``) becomes one
    even where nothing exists, so that the error to come names the place that was looked at.
    """
    place = folder / Path(base).expanduser()
    if base.startswith(("./", "../", "~")) or base.endswith(".gguf") or place.exists():
        return str(place)
    return base
