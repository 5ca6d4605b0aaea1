"""JSON lines, read strictly: one object per line, every bad row reported.

Tolerated: a byte order mark, CRLF line ends, blank lines. Refused, with the line: invalid UTF-8,
invalid JSON, anything but an object, NaN and infinities, a key twice in one object, text that is no
Unicode (lone surrogates). Not read on purpose: compressed files and other formats.
"""

from __future__ import annotations

import codecs
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from asr.data.problems import RowProblems
from asr.errors import DataError, did_you_mean

_LISTED_FILES = 8


@dataclass(frozen=True)
class Record:
    """One row: its line number (from 1, blank lines counted) and its object."""

    line: int
    values: dict[str, Any]


class _BadRowError(ValueError):
    """What was found and what was expected, for one row."""


def read_records(
    path: Path | str, limit_errors: int = 20, *, allow_empty: bool = False
) -> list[Record]:
    """Return the rows of a JSON-lines file, in file order.

    Args:
        path: the file.
        limit_errors: how many bad rows the error lists; all are counted.
        allow_empty: return an empty list for a file without rows, for callers with a better
            message.

    Raises:
        DataError: the file is missing (names near ones), a folder, unreadable, not UTF-8 (UTF-16),
            without rows, one JSON value over several lines, or has bad rows (see the module).
    """
    path = Path(path)
    raw = _read_bytes(path)
    lines = raw.removeprefix(codecs.BOM_UTF8).split(b"\n")
    records: list[Record] = []
    problems = RowProblems(path, limit_errors)
    rows = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        rows += 1
        try:
            records.append(Record(number, _parse_row(line)))
        except _BadRowError as error:
            problems.add(number, str(error))
    if problems:
        _refuse_one_value(path, raw)
        problems.raise_if_any(rows)
    if not rows and not allow_empty:
        raise DataError(f"{path}: the file has 0 rows; one JSON object per line is expected")
    return records


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give one file of it ({_listing(path)})")
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(_missing(path)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is in UTF-16; save it as UTF-8")
    return raw


def _files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except PermissionError:  # the names only help; without them the message says less
        return []


def _listing(folder: Path) -> str:
    names = _files(folder)
    if not names:
        return "no files are seen there"
    more = len(names) - _LISTED_FILES
    return "it holds: " + ", ".join(names[:_LISTED_FILES]) + (f", {more} more" if more > 0 else "")


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {path}: its folder {folder} does not exist either"
    near = did_you_mean(path.name, _files(folder))
    return f"there is no file {path}{near}; the folder {folder} was searched: {_listing(folder)}"


def _parse_row(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        raise _BadRowError(f"found {found}, expected UTF-8 text") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # "Unterminated string starting at"
        reason = f"{what} at column {error.colno}"
        raise _BadRowError(f"found invalid JSON ({reason}), expected one JSON object") from error
    except RecursionError as error:
        raise _BadRowError("found JSON nested too deeply, expected one JSON object") from error
    except _BadRowError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise _BadRowError(f"found a number that is too long ({error}), expected text") from error
    if not isinstance(value, dict):
        raise _BadRowError(f"found {describe(value)}, expected one JSON object")
    if "\\u" in text:  # only an escape can write half of a surrogate pair
        _refuse_surrogates(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _BadRowError(f"found the key '{key}' twice in one object, expected it once")
        values[key] = value
    return values


def _constant(name: str) -> NoReturn:
    raise _BadRowError(f"found {name}, expected a finite number or null")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _BadRowError(f"found {text}, expected a number that fits a 64-bit float")
    return number


def _refuse_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise _BadRowError(f"found {half}, half of a character, expected Unicode text") from error


def _refuse_one_value(path: Path, raw: bytes) -> None:
    """Say so where the whole file is one JSON value, instead of one error per line of it."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if isinstance(value, list):
        raise DataError(
            f"{path}: this is a JSON array; one object per line is expected "
            f"(jq -c '.[]' {path.name} > lines.jsonl converts it)"
        )
    if isinstance(value, dict) and b"\n" in raw.strip():
        raise DataError(
            f"{path}: this is one JSON object over several lines; one object per line is expected "
            f"(jq -c . {path.name} > lines.jsonl converts it)"
        )


def describe(value: object) -> str:
    """Return how to name a JSON value's kind in a message: ``a string``, ``null``, ``an array``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string" if value.strip() else "an empty string"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    return "an array" if isinstance(value, list) else "an object"
