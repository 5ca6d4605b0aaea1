"""Bad rows of a file, collected so that a user can mend them all at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asr.errors import DataError

LISTED = 20
"""How many problems an error lists; all are counted."""


class BadRowError(ValueError):
    """What was found and what was expected, for one row."""


class RowProblems:
    """What is wrong with the rows of one file.

    Every bad row is counted; the first ``limit`` problems are shown, in line order.
    """

    def __init__(self, path: Path, limit: int = LISTED) -> None:
        self._path = path
        self._limit = limit
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, problem: str) -> None:
        """Note one problem of the row at ``line`` (from 1)."""
        self._found.append((line, problem))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self, rows: int) -> None:
        """Raise if a problem was noted; ``rows`` is how many rows the file has.

        Raises:
            DataError: a single problem as one line, ``folder/file:line: ...``; several as a
                summary line, then ``file:line: ...`` for each.
        """
        if not self._found:
            return
        if len(self._found) == 1:
            line, problem = self._found[0]
            raise DataError(f"{self._path}:{line}: {problem}")
        bad = len({line for line, _ in self._found})
        noun = "row" if rows == 1 else "rows"
        summary = f"{self._path}: {bad} of {rows} {noun} cannot be used; mend or remove"
        ordered = sorted(self._found, key=lambda problem: problem[0])
        lines = [f"{self._path.name}:{line}: {problem}" for line, problem in ordered]
        raise listed(summary, lines, self._limit, "problems")


def listed(
    summary: str, problems: Sequence[str], limit: int = LISTED, noun: str | None = None
) -> DataError:
    """Return one error for several problems: a summary line, then the first ``limit`` of them.

    The summary says so where there are more; ``noun`` is what it calls them, if anything.
    """
    what = str(limit) if noun is None else f"{limit} {noun}"
    first = f" (the first {what})" if len(problems) > limit else ""
    return DataError("\n".join([f"{summary}{first}:", *problems[:limit]]))


def describe(value: object) -> str:
    """Return how to name a value's kind in a message: ``a string``, ``null``, ``an array``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string" if value.strip() else "an empty string"
    if isinstance(value, (int, float)):
        number = str(value)
        return f"the number {number}" if len(number) <= 40 else "a long number"
    if isinstance(value, list):
        return "an array"
    # Parquet files hold more kinds than JSON: bytes, dates, decimals
    return "an object" if isinstance(value, dict) else f"a value of the type {type(value).__name__}"
