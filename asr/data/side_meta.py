"""``train.meta.jsonl`` beside ``train.jsonl``: what scorers read, kept apart from the text.

The side file holds one object per row of the data, in the same order. It is found by its name, and
joined with the ``meta`` that rows have themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asr.data.files import COMPRESSED
from asr.data.formats import Example
from asr.data.hub import is_hub
from asr.data.problems import listed
from asr.data.records import Record, read_records
from asr.errors import DataError


def side_file(path: Path) -> Path | None:
    """Return the side file of a data file, None where there is none."""
    if is_hub(path):
        return None
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    side = bare.with_name(f"{bare.stem}.meta.jsonl")
    return side if side.exists() and side != path else None


def join_meta(examples: Sequence[Example], path: Path) -> list[Example]:
    """Return the examples with the rows of the data's side file in their ``meta``.

    Raises:
        DataError: the side file cannot be used, has another number of rows, or says otherwise than
            a row's own ``meta``; names all those rows.
    """
    side = side_file(path)
    if side is None:
        return list(examples)
    records = read_records(side, allow_empty=True)
    if len(records) != len(examples):
        raise DataError(
            f"{side} has {len(records)} rows and {path.name} has {len(examples)}; it holds the "
            f"meta of {path.name}, one object per row in the same order: mend or rename it"
        )
    conflicts = [
        f"{side.name}:{record.line}: found another '{key}' than in the 'meta' of {example.source}"
        for example, record in zip(examples, records, strict=True)
        for key in _conflicts(example, record)
    ]
    if conflicts:
        summary = f"{side}: {len(conflicts)} values contradict {path.name}; mend or remove"
        raise listed(summary, conflicts)
    return [
        replace(example, meta={**record.values, **example.meta})
        for example, record in zip(examples, records, strict=True)
    ]


def _conflicts(example: Example, record: Record) -> list[str]:
    shared = example.meta.keys() & record.values.keys()
    return sorted(key for key in shared if example.meta[key] != record.values[key])
