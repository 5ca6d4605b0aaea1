"""Bad rows of a file, collected so that a user can mend them all at once."""

from __future__ import annotations

from pathlib import Path

from asr.errors import DataError


class RowProblems:
    """What is wrong with the rows of one file, in line order.

    Every bad row is counted; the first ``limit`` are shown.
    """

    def __init__(self, path: Path, limit: int = 20) -> None:
        self._path = path
        self._limit = limit
        self._shown: list[str] = []
        self._hidden = 0
        self._lines: set[int] = set()

    def add(self, line: int, problem: str) -> None:
        """Note one problem of the row at ``line`` (from 1)."""
        self._lines.add(line)
        if len(self._shown) < self._limit:
            self._shown.append(f"{self._path.name}:{line}: {problem}")
        else:
            self._hidden += 1

    def __bool__(self) -> bool:
        return bool(self._lines)

    def raise_if_any(self, rows: int) -> None:
        """Raise if a problem was noted; ``rows`` is how many rows the file has.

        Raises:
            DataError: one summary line, then one ``file:line: ...`` per problem.
        """
        if not self._lines:
            return
        bad = len(self._lines)
        hidden = f" (the first {self._limit} problems)" if self._hidden else ""
        noun = "row" if rows == 1 else "rows"
        summary = f"{self._path}: {bad} of {rows} {noun} cannot be used; mend or remove{hidden}:"
        raise DataError("\n".join([summary, *self._shown]))
