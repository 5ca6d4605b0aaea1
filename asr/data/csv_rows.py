"""CSV and TSV: a header line, then one row per record, with the line that it begins in.

Read strictly: no guessing of separators, no row shorter or longer than the header, quotes closed.
A quoted cell may hold line breaks. All cells are text; an empty one is an empty string.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asr.data.files import refuse_utf16
from asr.data.problems import RowProblems
from asr.data.records import Record, not_utf8
from asr.errors import DataError

_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars"}


def parse_csv(
    path: Path, raw: bytes, separator: str, problems: RowProblems
) -> tuple[list[Record], int, tuple[str, ...]]:
    """Return the good rows, the number of all rows, and the columns.

    Args:
        path: the file, for messages.
        raw: its bytes.
        separator: between cells: a comma, or a tab.
        problems: takes the bad rows.

    Raises:
        DataError: UTF-16; an unusable header: empty, with a name twice or without a name, or
            separated by something else.
    """
    refuse_utf16(path, raw)
    body = raw.removeprefix(codecs.BOM_UTF8)
    if _unreadable_lines(body, problems):
        return [], body.count(b"\n") + 1, ()
    records: list[Record] = []
    rows = 0
    columns: tuple[str, ...] = ()
    with _long_cells():
        reader = csv.reader(
            io.StringIO(body.decode("utf-8"), newline=""), delimiter=separator, strict=True
        )
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if not columns:
                    raise DataError(f"{path.name}:{line}: {_broken(error)}") from error
                rows += 1
                problems.add(line, _broken(error))
                continue
            if cells is None:
                return records, rows, columns
            if not cells or (not columns and not any(cell.strip() for cell in cells)):
                continue  # a blank line
            if not columns:
                columns = _header(path, line, cells, separator)
                continue
            rows += 1
            if len(cells) == len(columns):
                records.append(Record(line, dict(zip(columns, cells, strict=True))))
            else:
                problems.add(
                    line,
                    f"found {len(cells)} cell{'' if len(cells) == 1 else 's'}, expected "
                    f"{len(columns)} as in the header ({', '.join(columns)}); put a cell that "
                    "holds the separator or a line break in double quotes",
                )


def _unreadable_lines(body: bytes, problems: RowProblems) -> bool:
    for number, line in enumerate(body.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(number, not_utf8(line, error))
        else:
            if b"\0" in line:
                problems.add(number, "found a NUL byte, expected text")
    return bool(problems)


def _header(path: Path, line: int, cells: list[str], separator: str) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    where = f"{path.name}:{line}"
    if len(columns) == 1:
        for other, name in _SEPARATORS.items():
            if other != separator and other in columns[0]:
                fix = "name the file .tsv" if other == "\t" else f"use {_SEPARATORS[separator]}"
                raise DataError(
                    f"{where}: the header '{columns[0]}' is separated by {name}, expected "
                    f"{_SEPARATORS[separator]}; {fix}"
                )
    for column in columns:
        if not column:
            raise DataError(f"{where}: a column of the header has no name; name or remove it")
        if columns.count(column) > 1:
            raise DataError(
                f"{where}: the column '{column}' stands twice in the header; rename one"
            )
    return columns


def _broken(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "found a double quote that is never closed, expected the end of the cell"
    return f'found a broken quoted cell ({error}), expected "..." with inner quotes doubled'


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a cell be longer than csv's default of 128 kB."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
