"""YAML of the safe kind, with the line of every key.

Read by the rules of YAML 1.2's core schema, not PyYAML's 1.1: ``1e-3`` is a number, ``no`` and
``on`` are text (a domain may be called so), there are no dates and no base-60 numbers. Keys are
text always, and a key that stands twice is refused instead of dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from asr.errors import ConfigError

Lines = dict[tuple[str, ...], int]
"""Line (from 1) at which each dotted path of a file stands."""


MAX_PATHS = 100_000
"""Most paths in one file: aliases of aliases grow exponentially, and no config is that long."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its value, and where its keys stand."""

    value: dict[str, Any]
    lines: Lines = field(default_factory=dict)


def read_yaml(path: Path) -> Document:
    """Parse the YAML mapping in ``path``.

    Raises:
        ConfigError: missing, unreadable, not UTF-8, not YAML (a tab in the indentation, too),
            empty, not a mapping, more than one document, or a key that stands twice.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"no config file '{path}'") from error
    except IsADirectoryError as error:
        raise ConfigError(f"'{path}' is a folder: give a YAML file") from error
    except OSError as error:
        raise ConfigError(f"cannot read config file '{path}': {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str = "config") -> Document:
    """Parse a YAML mapping; ``source`` names it in errors.

    Raises:
        ConfigError: as :func:`read_yaml`.
    """
    lines: Lines = {}
    try:
        node, value = _load(text, source, lines)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(source, text, error)) from error
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(f"{source}: not YAML ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    if node is None:
        raise ConfigError(f"{source}: empty; a config has at least base and domains")
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: expected 'key: value' lines, got {_kind(node)}")
    return Document(value, lines)


def parse_value(text: str) -> Any:
    """Parse the value of an override, by the same rules as a file.

    Raises:
        ConfigError: not YAML.
    """
    try:
        return _load(text, "value", {})[1]
    except yaml.YAMLError as error:
        raise ConfigError(f"not a YAML value ({_reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a YAML value ({error})") from error


def _load(text: str, source: str, lines: Lines) -> tuple[yaml.Node | None, Any]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _index(node, (), source, lines, ())
        return node, loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core scalars and with text keys."""

    def construct_yaml_int(self, node: Any) -> int:
        # PyYAML reads 012 as octal and 1:30 as base 60; the core schema does neither.
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        pairs: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text", key.start_mark
                )
            pairs[key.value] = self.construct_object(value, deep=True)
        return pairs


_Loader.yaml_implicit_resolvers = {}  # drops YAML 1.1's, which SafeLoader holds
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _index(
    node: yaml.Node,
    path: tuple[str, ...],
    source: str,
    lines: Lines,
    open_nodes: tuple[int, ...],
) -> None:
    """Record the line of every path below ``node``; refuse doubled keys and circular aliases."""
    if id(node) in open_nodes:
        raise ConfigError(
            f"{source}:{node.start_mark.line + 1}: an alias that contains itself cannot be a config"
        )
    inside = (*open_nodes, id(node))
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            below = (*path, str(position))
            lines[below] = item.start_mark.line + 1
            _index(item, below, source, lines, inside)
    if len(lines) > MAX_PATHS:
        raise ConfigError(f"{source}: more than {MAX_PATHS:,} values; aliases of aliases?")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused by the constructor, with its line
            line = key.start_mark.line + 1
            if key.value in seen:
                kind = "domain" if path == ("domains",) else "key"
                name = key.value if kind == "domain" else ".".join((*path, key.value))
                raise ConfigError(
                    f"{source}: {kind} '{name}' stands twice (lines {seen[key.value]} and {line}); "
                    "remove or rename one"
                )
            seen[key.value] = line
            below = (*path, key.value)
            lines[below] = line
            _index(value, below, source, lines, inside)


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"a single value ({node.value!r})"


def _yaml_message(source: str, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{source}: not YAML ({_reason(error)})"
    line = mark.line + 1
    stands = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    if re.match(r" *\t", stands):
        return f"{source}:{line}: a tab in the indentation; YAML wants spaces"
    return f"{source}:{line}: not YAML ({_reason(error)}, column {mark.column + 1})"


def _reason(error: yaml.YAMLError) -> str:
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(str(reason).split())
