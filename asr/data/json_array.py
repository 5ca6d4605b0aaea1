"""A ``.json`` file: an array of objects, each with the line that it begins in.

An array that stands in one line as a whole has its objects numbered instead.

What a line of JSON lines must keep to holds for every object. Where the syntax breaks, nothing
behind it can be read, so that is the last problem of the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asr.data.files import refuse_utf16
from asr.data.problems import BadRowError, RowProblems
from asr.data.records import STRICT, Record, checked_object, not_utf8, parse_lines
from asr.data.shapes import KNOWN_KEYS
from asr.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_strict = json.JSONDecoder(**STRICT)
# Finds the end of an object that the strict decoder gave up on; numbers stay text, of any length.
_lenient = json.JSONDecoder(parse_int=str, parse_float=str)


class _SyntaxBreakError(ValueError):
    """Where and how the array's own syntax breaks."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


def parse_json(path: Path, raw: bytes, problems: RowProblems) -> tuple[list[Record], int, str]:
    """Return the good rows of a JSON file, the number of all, and what they are numbered by.

    Bad rows go to ``problems``. Numbers count lines (``line``) or objects (``row``).

    Many files called ``.json`` hold JSON lines; what does not begin with ``[`` is read as those.

    Raises:
        DataError: UTF-16; one object where an array is expected.
    """
    refuse_utf16(path, raw)
    body = raw.removeprefix(codecs.BOM_UTF8)
    if not body.lstrip().startswith(b"["):
        try:
            records, rows = parse_lines(path, raw, problems)
        except DataError as error:
            raise DataError(_one_object(path, body) or str(error)) from error
        if rows == 1 and records and _wraps_rows(records[0].values):
            raise DataError(_one_object(path, body))
        return records, rows, "line"
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        start = body.rfind(b"\n", 0, error.start) + 1
        error.start -= start
        problems.add(line, not_utf8(body[start:], error))
        return [], 1, "line"
    by_row = "\n" not in text.strip()
    return (*_parse_array(text, problems, by_row), "row" if by_row else "line")


def _parse_array(text: str, problems: RowProblems, by_row: bool) -> tuple[list[Record], int]:
    records: list[Record] = []
    rows = 0
    place, line, counted = text.index("[") + 1, 1, 0
    try:
        place = _skip(text, place)
        while text[place : place + 1] != "]" or rows:
            rows += 1
            line = rows if by_row else line + text.count("\n", counted, place)
            counted = place
            try:
                value, end = _strict.raw_decode(text, place)
                records.append(Record(line, checked_object(value, text[place:end])))
            except json.JSONDecodeError as error:
                raise _SyntaxBreakError(error.pos, error.msg.removesuffix(" at")) from error
            except RecursionError as error:
                raise _SyntaxBreakError(place, "nested too deeply") from error
            except ValueError as error:
                too_long = f"found a number that is too long ({error}), expected text"
                problems.add(line, str(error) if isinstance(error, BadRowError) else too_long)
                end = _end_of_value(text, place)
            place = _skip(text, end)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise _SyntaxBreakError(place, "Expecting ',' delimiter")
            place = _skip(text, place + 1)
        rest = _skip(text, place + 1)
        if rest < len(text):
            raise _SyntaxBreakError(rest, "Extra data")
    except _SyntaxBreakError as error:
        at = rows if by_row else text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        problems.add(
            at,
            f"found invalid JSON ({error} at column {column}), expected an array of objects; what "
            "follows was not read",
        )
    return records, rows


def _end_of_value(text: str, place: int) -> int:
    try:
        return _lenient.raw_decode(text, place)[1]
    except json.JSONDecodeError as error:
        raise _SyntaxBreakError(error.pos, error.msg.removesuffix(" at")) from error
    except RecursionError as error:  # what the strict decoder had not come to
        raise _SyntaxBreakError(place, "nested too deeply") from error


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return place if match is None else match.end()


def _wraps_rows(values: Mapping[str, Any]) -> bool:
    """Whether the only object of a file is none of its rows, but holds them."""
    arrays = (value for value in values.values() if isinstance(value, list))
    return not values.keys() & set(KNOWN_KEYS) and any(
        value and all(isinstance(row, dict) for row in value) for value in arrays
    )


def _one_object(path: Path, body: bytes) -> str | None:
    """Return the message for a file that is one object, naming the array in it if there is one."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    arrays = [key for key, inner in value.items() if isinstance(inner, list)]
    inside = (
        f" (jq '.{arrays[0]}' {path.name} > rows.json takes the one at '{arrays[0]}')"
        if arrays
        else f" (jq -s . {path.name} > rows.json makes one)"
    )
    return f"{path}: this is one JSON object; an array of objects is expected{inside}"
