"""JSON lines, read strictly: one object per line, every bad row reported.

Tolerated: a byte order mark, CRLF line ends, blank lines. Refused, with the line: invalid UTF-8,
invalid JSON, anything but an object, NaN and infinities, a key twice in one object, text that is no
Unicode (lone surrogates). The rules of an object (:data:`STRICT`) are also those of JSON arrays.
"""

from __future__ import annotations

import codecs
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from asr.data.files import read_bytes, refuse_utf16
from asr.data.problems import LISTED, BadRowError, RowProblems, describe
from asr.errors import DataError


@dataclass(frozen=True)
class Record:
    """One row: its line or row number (from 1, blank lines counted) and its object."""

    line: int
    values: dict[str, Any]


def read_records(
    path: Path | str, limit_errors: int = LISTED, *, allow_empty: bool = False
) -> list[Record]:
    """Return the rows of a JSON-lines file, in file order.

    Args:
        path: the file; ``.gz`` and ``.zst`` are unpacked.
        limit_errors: how many bad rows the error lists; all are counted.
        allow_empty: return an empty list for a file without rows, for callers with a better
            message.

    Raises:
        DataError: the file is missing (names near ones), a folder, unreadable, not UTF-8 (UTF-16),
            without rows, one JSON value over several lines, or has bad rows (see the module).
    """
    path = Path(path)
    problems = RowProblems(path, limit_errors)
    records, rows = parse_lines(path, read_bytes(path), problems)
    problems.raise_if_any(rows)
    if not rows and not allow_empty:
        raise DataError(f"{path}: the file has 0 rows; one JSON object per line is expected")
    return records


def parse_lines(path: Path, raw: bytes, problems: RowProblems) -> tuple[list[Record], int]:
    """Return the good rows of JSON lines and the number of all rows; bad ones go to ``problems``.

    Raises:
        DataError: UTF-16; or bad rows because the file is one JSON value over several lines.
    """
    refuse_utf16(path, raw)
    records: list[Record] = []
    rows = 0
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        rows += 1
        try:
            records.append(Record(number, _parse_row(line)))
        except BadRowError as error:
            problems.add(number, str(error))
    if problems:
        _refuse_one_value(path, raw)
    return records, rows


def _parse_row(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadRowError(not_utf8(line, error)) from error
    try:
        value = json.loads(text, **STRICT)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # "Unterminated string starting at"
        reason = f"{what} at column {error.colno}"
        raise BadRowError(f"found invalid JSON ({reason}), expected one JSON object") from error
    except RecursionError as error:
        raise BadRowError("found JSON nested too deeply, expected one JSON object") from error
    except BadRowError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise BadRowError(f"found a number that is too long ({error}), expected text") from error
    return checked_object(value, text)


def checked_object(value: object, text: str) -> dict[str, Any]:
    """Return a parsed row, if it is an object of Unicode text; ``text``: what it was parsed from.

    Raises:
        BadRowError: it is something else, or holds half of a surrogate pair.
    """
    if not isinstance(value, dict):
        raise BadRowError(f"found {describe(value)}, expected one JSON object")
    if "\\u" in text:  # only an escape can write half of a surrogate pair
        _refuse_surrogates(value)
    return value


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """Return the message for a line that is not UTF-8."""
    found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
    return f"found {found}, expected UTF-8 text"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise BadRowError(f"found the key '{key}' twice in one object, expected it once")
        values[key] = value
    return values


def _constant(name: str) -> NoReturn:
    raise BadRowError(f"found {name}, expected a finite number or null")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise BadRowError(f"found {text}, expected a number that fits a 64-bit float")
    return number


STRICT: dict[str, Any] = {
    "object_pairs_hook": _object,
    "parse_constant": _constant,
    "parse_float": _float,
}
"""Arguments for :mod:`json` that refuse what the module refuses."""


def _refuse_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise BadRowError(f"found {half}, half of a character, expected Unicode text") from error


def _refuse_one_value(path: Path, raw: bytes) -> None:
    """Say so where the whole file is one JSON value, instead of one error per line of it."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if isinstance(value, list):
        raise DataError(
            f"{path}: this is a JSON array; one object per line is expected (name the file .json, "
            f"or convert it: jq -c '.[]' {path.name} > lines.jsonl)"
        )
    if isinstance(value, dict) and b"\n" in raw.strip():
        raise DataError(
            f"{path}: this is one JSON object over several lines; one object per line is expected "
            f"(jq -c . {path.name} > lines.jsonl converts it)"
        )
