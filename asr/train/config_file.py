"""From a file to a checked config: all that is wrong with it at once, in the user's words."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from asr.data.hub import is_there, locate_data
from asr.data.shapes import FORMATS
from asr.errors import ConfigError, did_you_mean, unknown
from asr.train.config import SCORERS, DomainConfig, TrainConfig
from asr.train.overrides import PATH_FIELDS, PROBE, apply_overrides, locate_base, locate_probe
from asr.train.placement_config import DominantPlacement
from asr.train.strict_yaml import Lines, read_yaml


def load_config(
    path: Path | str, overrides: Iterable[str] = (), scorers: Collection[str] = SCORERS
) -> TrainConfig:
    """Read, override and validate the config at ``path``; its paths come back absolute.

    Paths in the file start at the file's folder. Files it names are not opened:
    see :func:`check_files`.

    Raises:
        ConfigError: an unreadable file, YAML that is refused, a bad override, or any number of
            wrong settings: with one the message is one line, with more the first line counts them
            and each has a line of its own (line number, dotted path, what was given, what is
            expected).
    """
    path = Path(path)
    document = read_yaml(path)
    raw = _located(document.value, path.absolute().parent)
    changed = list(overrides)
    raw = apply_overrides(raw, changed)
    set_by_hand = {tuple(o.partition("=")[0].strip().split(".")) for o in changed}
    return build_config(raw, str(path), document.lines, set_by_hand, scorers)


def build_config(
    raw: dict[str, Any],
    source: str = "config",
    lines: Lines | None = None,
    set_by_hand: Collection[tuple[str, ...]] = (),
    scorers: Collection[str] = SCORERS,
) -> TrainConfig:
    """Validate plain values; ``source`` names them in errors.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    try:
        text = json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}; a config holds text, numbers and lists") from error
    # As JSON: strict, and yet a list may be a tuple and text a path.
    problems: list[tuple[tuple[str, ...], str]] = []
    config: TrainConfig | None = None
    try:
        config = TrainConfig.model_validate_json(text)
    except ValidationError as error:
        problems = [_problem(dict(item)) for item in error.errors(include_url=False)]
    problems += _unknown_names(raw, "scorer", "scorer", scorers)
    problems += _unknown_names(raw, "format", "data format", FORMATS)
    if config is not None and not problems:
        return config
    raise ConfigError(_report(source, problems, lines or {}, set_by_hand))


def check_files(config: TrainConfig, names: Iterable[str] | None = None) -> None:
    """Refuse a config whose files do not exist. ``names``: the domains to look at (default all).

    A resumed run looks at unfinished domains only: a finished one no longer needs its data.

    Raises:
        ConfigError: names every missing file with its domain and field.
    """
    missing: list[str] = []
    for name in config.domains if names is None else names:
        for key in ("train", "dev", "test"):
            file: Path | None = getattr(config.domains[name], key)
            if file is not None and not is_there(file):
                what = "is a folder, not a file" if file.is_dir() else "does not exist"
                missing.append(f"domains.{name}.{key}: {file} {what}")
        placement = config.domains[name].adapter.placement
        probe = placement.dominant.probe if isinstance(placement, DominantPlacement) else None
        if probe is not None and not probe.is_file():
            what = "is a folder, not a file" if probe.is_dir() else "does not exist"
            missing.append(f"domains.{name}.adapter.placement.dominant.probe: {probe} {what}")
    if missing:
        raise ConfigError(_many("config", missing))


def _located(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``raw`` with the paths of the file made absolute from ``folder``."""
    located = dict(raw)
    if isinstance(located.get("base"), str) and located["base"]:
        located["base"] = locate_base(located["base"], folder)
    located |= locate_probe(located, PROBE, folder)
    domains = located.get("domains")
    if isinstance(domains, dict):
        located["domains"] = {
            name: {
                key: locate_data(value, folder)
                if key in PATH_FIELDS and isinstance(value, str) and value
                else value
                for key, value in locate_probe(domain, PROBE, folder).items()
            }
            if isinstance(domain, dict)
            else domain
            for name, domain in domains.items()
        }
    return located


def _unknown_names(
    raw: dict[str, Any], key: str, kind: str, known: Collection[str]
) -> list[tuple[tuple[str, ...], str]]:
    problems: list[tuple[tuple[str, ...], str]] = []
    domains = raw.get("domains")
    for name, domain in domains.items() if isinstance(domains, dict) else ():
        given = domain.get(key) if isinstance(domain, dict) else None
        if isinstance(given, str) and given not in known:
            problems.append((("domains", name, key), unknown(kind, given, known)))
    return problems


_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a section with keys",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "model_type": "a section with keys",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
_DEVICES = "auto, cpu, cuda, cuda:N, xpu, xpu:N or mps"


def _problem(item: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Turn one of pydantic's errors into (path, text)."""
    path = tuple(str(part) for part in item["loc"] if part != "[key]")
    dotted, kind, context = ".".join(path), item["type"], item.get("ctx", {})
    if kind == "missing":
        return path, f"{dotted} is missing{_meaning(path)}"
    if kind == "extra_forbidden":
        choices = _section(path[:-1]).model_fields
        listing = ", ".join(choices)
        place = f"'{'.'.join(path[:-1])}'" if path[:-1] else "the config"
        near = did_you_mean(path[-1], choices)
        return path, f"unknown key '{dotted}'{near}; {place} has: {listing}"
    given = _given(item["input"])
    if kind == "model_type" and path[0] == "domains" and isinstance(item["input"], str):
        return path, f"{dotted}: got {given}, expected {{train: {item['input']}}}"
    if path[-1:] and path[-1] in PATH_FIELDS:
        return path, f"{dotted}: got {given}, expected a path"
    if kind == "value_error":
        text = str(context["error"])
        if item["loc"][-1:] == ("[key]",):
            return path, text
        if path and path[-1] in {"placement", "views"} and not text.startswith("unknown"):
            return path, f"{dotted}: got {given}, expected {text}"
        return path, f"{dotted}: {text}" if dotted else text
    if kind == "literal_error":
        choices_text = str(context["expected"])
        near = did_you_mean(str(item["input"]), re.findall(r"'([^']*)'", choices_text))
        return path, f"{dotted}: got {given}{near}, expected {choices_text}"
    if kind == "string_pattern_mismatch":
        return path, f"{dotted}: got {given}, expected {_DEVICES}"
    if kind in {"too_short", "string_too_short"}:
        return path, f"{dotted} is empty{_meaning(path)}"
    bound = next(
        (f"{word} {_bound(context[key])}" for key, word in _BOUNDS.items() if key in context), ""
    )
    expected = _EXPECTED.get(kind) or bound or item["msg"]
    return path, f"{dotted}: got {given}, expected {expected}"


def _section(path: tuple[str, ...]) -> type[BaseModel]:
    """Return the model whose keys stand at ``path``."""
    if path[:1] == ("domains",):
        section: type[BaseModel] = DomainConfig
        path = path[2:]
    else:
        section = TrainConfig
    for key in path:
        annotation = section.model_fields[key].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return section


def _meaning(path: tuple[str, ...]) -> str:
    described = _section(path[:-1]).model_fields.get(path[-1])
    text = described.description if described else None
    return f" ({text.removesuffix('.')})" if text else ""


def _bound(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _given(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _report(
    source: str,
    problems: list[tuple[tuple[str, ...], str]],
    lines: Lines,
    set_by_hand: Collection[tuple[str, ...]],
) -> str:
    placed: list[tuple[int, str]] = []
    for path, text in problems:
        if any(path[: len(key)] == key for key in set_by_hand):
            placed.append((0, f"{text} (set on the command line)"))
            continue
        known = (path[:end] for end in range(len(path), 0, -1) if path[:end] in lines)
        placed.append((lines.get(next(known, ()), 0), text))
    placed.sort(key=lambda entry: entry[0])
    if len(placed) == 1:
        line, text = placed[0]
        return f"{source}:{line}: {text}" if line else f"{source}: {text}"
    return _many(source, [f"line {line}: {text}" if line else text for line, text in placed])


def _many(source: str, texts: list[str]) -> str:
    if len(texts) == 1:
        return f"{source}: {texts[0]}"
    return "\n".join([f"{source}: {len(texts)} errors", *(f"  {text}" for text in texts)])
