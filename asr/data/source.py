"""The rows of a domain's data, whatever it lies in: which reader reads which file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asr.data.csv_rows import parse_csv
from asr.data.files import COMPRESSED, read_bytes
from asr.data.hub import is_hub, load_hub
from asr.data.json_array import parse_json
from asr.data.parquet import parse_parquet
from asr.data.problems import RowProblems
from asr.data.records import Record, parse_lines
from asr.errors import DataError

_ELSEWHERE = {
    (".txt", ".md", ".html", ".pdf", ".docx"): "write one JSON object per line into a .jsonl file "
    '({"text": ...}, or {"prompt": ..., "completion": ...})',
    (".xlsx", ".xls", ".ods", ".numbers"): "save the sheet as CSV (UTF-8)",
    (".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z"): "unpack it; only .gz and .zst are read as "
    "they are",
    (".arrow", ".feather", ".orc", ".avro", ".pkl", ".pickle", ".npy", ".db", ".sqlite"): "save "
    "the rows as Parquet or JSON lines",
    (".yaml", ".yml", ".toml", ".xml"): "save the rows as JSON lines",
}


_FIRST_BYTES = {
    b"PAR1": "is a Parquet file; name it .parquet",
    b"\x1f\x8b": "is compressed by gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed by Zstandard; add .zst to its name",
    b"PK\x03\x04": "is a zip archive or an office document; unpack it, or save the sheet as CSV",
}
"""How files begin that their name does not tell; no text begins so."""


@dataclass(frozen=True)
class Source:
    """Rows as they were read.

    Attributes:
        records: the good ones, in order.
        rows: how many there are, bad ones included.
        columns: of a table, whose rows all have the same keys; None for JSON.
        unit: what a record's number counts: ``line`` or ``row``.
    """

    records: list[Record]
    rows: int
    columns: tuple[str, ...] | None = None
    unit: str = "line"


def read_source(path: Path, problems: RowProblems) -> Source:
    """Read the rows of a file or of a hub data set; bad rows go to ``problems``.

    By the name: ``.json``, ``.csv``, ``.tsv``, ``.parquet``, with ``.gz`` or ``.zst`` behind it or
    not; ``hub:...`` for the hub; anything else is read as JSON lines.

    Raises:
        DataError: it cannot be read at all: see the readers; or it is of a kind that none reads.
    """
    if is_hub(path):
        records, rows, columns = load_hub(path, problems)
        return Source(records, rows, columns, "row")
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    suffix = bare.suffix.lower()
    raw = read_bytes(path)
    for suffixes, advice in _ELSEWHERE.items():
        if suffix in suffixes:
            raise DataError(f"{path}: {suffix} files are not read; {advice}")
    if suffix == ".parquet":
        records, rows, columns = parse_parquet(path, raw, problems)
        return Source(records, rows, columns, "row")
    for first, advice in _FIRST_BYTES.items():
        if raw.startswith(first):
            raise DataError(f"{path} {advice}")
    if suffix in (".csv", ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
        records, rows, columns = parse_csv(path, raw, separator, problems)
        return Source(records, rows, columns)
    if suffix == ".json":
        records, rows, unit = parse_json(path, raw, problems)
        return Source(records, rows, None, unit)
    return Source(*parse_lines(path, raw, problems))
