"""Parquet files, read with pyarrow: rows are numbered from 1.

Read directly, not through the datasets library: that would copy the file into its cache, and its
errors name no row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr.data.problems import RowProblems
from asr.data.records import Record
from asr.errors import DataError, first_line


def parse_parquet(
    path: Path, raw: bytes, problems: RowProblems
) -> tuple[list[Record], int, tuple[str, ...]]:
    """Return the good rows, the number of all rows, and the columns.

    Raises:
        DataError: no Parquet file, a damaged one, or one with a column twice.
    """
    import pyarrow
    from pyarrow import parquet

    records: list[Record] = []
    row = 0
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(raw))
        columns = tuple(file.schema_arrow.names)
        for column in columns:
            if columns.count(column) > 1:
                raise DataError(f"{path}: the column '{column}' stands twice; rename one")
        for batch in file.iter_batches(batch_size=1024):
            for values in _rows(batch):
                row += 1
                if isinstance(values, UnicodeDecodeError):
                    problems.add(row, "found bytes that are not UTF-8, expected text")
                elif isinstance(values, Exception):
                    problems.add(row, f"found a value that cannot be read ({values})")
                else:
                    records.append(Record(row, values))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is no Parquet file, or a damaged one ({first_line(error)}); write or copy it "
            "again"
        ) from error
    return records, row, columns


def _rows(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """Return rows, or why one cannot be read: bytes for text, a date beyond Python's, ..."""
    unreadable = (ValueError, OverflowError, LookupError)
    try:
        yield from batch.to_pylist()
    except unreadable:  # raised before the first row: now row by row
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except unreadable as error:
                yield error
