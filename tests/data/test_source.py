"""Rows out of JSON arrays, CSV, Parquet and compressed files: the same, and where each stood."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from asr.data.load import load_examples
from asr.data.problems import RowProblems
from asr.data.source import Source, read_source
from asr.errors import DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer\n{i}"} for i in range(6)]

# what every format can hold: no surrogates, no NUL; CSV's reader makes one line end of two
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)
tables = st.lists(st.fixed_dictionaries({"prompt": texts, "completion": texts}), max_size=8)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> Source:
    problems = RowProblems(path)
    source = read_source(path, problems)
    problems.raise_if_any(source.rows)
    return source


def message(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read(path)
    return str(error.value)


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def packed(content: bytes) -> bytes:
    """gzip, without the time: it stands in the tests' names, and every worker collects the same."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", "\ufeff" + json.dumps(ROWS, indent=2).replace("\n", "\r\n")),
        ("a.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.ndjson", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.csv", as_csv(ROWS)),
        ("a.csv", b"\xef\xbb\xbf" + as_csv(ROWS)),
        ("a.tsv", as_csv(ROWS).replace(b",", b"\t")),
        ("a.parquet", as_parquet(ROWS)),
        ("a.csv.gz", packed(as_csv(ROWS))),
        ("a.json.gz", packed(json.dumps(ROWS).encode())),
        ("a.parquet.gz", packed(as_parquet(ROWS))),
        ("a.json.zst", pyarrow.compress(json.dumps(ROWS).encode(), "zstd", asbytes=True)),
    ],
)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str, content: bytes | str) -> None:
    source = read(write(tmp_path / name, content))
    assert [record.values for record in source.records] == ROWS
    assert source.rows == len(ROWS)


def test_every_kind_gives_the_same_hash(tmp_path: Path) -> None:
    files = {
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": as_csv(ROWS),
        "a.parquet": as_parquet(ROWS),
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    }
    loaded = {n: load_examples(write(tmp_path / n, c), name="a") for n, c in files.items()}
    assert len({data.sha256 for data in loaded.values()}) == 1
    assert {data.format for data in loaded.values()} == {"prompt-completion"}


@settings(max_examples=60, deadline=None)
@given(rows=tables, indent=st.sampled_from([None, 0, 3]))
def test_an_array_is_read_as_lines_are(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    array = write(folder / "a.json", json.dumps(rows, indent=indent))
    table = write(folder / "a.csv", as_csv(rows))
    assert [record.values for record in read(array).records] == rows
    assert [record.values for record in read(table).records] == rows


def test_numbers_are_lines_where_there_are_lines(tmp_path: Path) -> None:
    spread = read(write(tmp_path / "a.json", json.dumps(ROWS, indent=1)))
    flat = read(write(tmp_path / "b.json", json.dumps(ROWS)))
    table = read(write(tmp_path / "a.csv", as_csv(ROWS)))
    column = read(write(tmp_path / "a.parquet", as_parquet(ROWS)))
    assert ([r.line for r in spread.records], spread.unit) == ([2, 6, 10, 14, 18, 22], "line")
    assert ([r.line for r in flat.records], flat.unit) == ([1, 2, 3, 4, 5, 6], "row")
    # every second column holds a line break
    assert ([r.line for r in table.records], table.unit) == ([2, 4, 6, 8, 10, 12], "line")
    assert ([r.line for r in column.records], column.unit) == ([1, 2, 3, 4, 5, 6], "row")


def test_all_bad_objects_of_an_array_in_one_error(tmp_path: Path) -> None:
    content = '[\n{"prompt": NaN},\n{"prompt": "a", "completion": "b"},\n3,\n{"a": 1, "a": 2}\n]'
    path = write(tmp_path / "a.json", content)
    assert message(path).splitlines() == [
        f"{path}: 3 of 4 rows cannot be used; mend or remove:",
        "a.json:2: found NaN, expected a finite number or null",
        "a.json:4: found the number 3, expected one JSON object",
        "a.json:5: found the key 'a' twice in one object, expected it once",
    ]


def test_what_is_nested_too_deeply_ends_an_array(tmp_path: Path) -> None:
    deep = "[" * 5000 + "]" * 5000
    path = write(tmp_path / "a.json", f'[\n{{"prompt": NaN, "extra": {deep}}},\n{{"prompt": 3}}]')
    assert message(path).splitlines() == [
        f"{path}: 1 of 1 row cannot be used; mend or remove:",
        "a.json:2: found NaN, expected a finite number or null",
        "a.json:2: found invalid JSON (nested too deeply at column 1), expected an array of "
        "objects; what follows was not read",
    ]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_the_array_is_named(tmp_path: Path, indent: int | None) -> None:
    whole = {"version": "1.0", "data": ROWS}
    path = write(tmp_path / "a.json", json.dumps(whole, indent=indent))
    assert message(path) == (
        f"{path}: this is one JSON object; an array of objects is expected (jq '.data' a.json > "
        "rows.json takes the one at 'data')"
    )
    row = {"messages": [{"role": "user", "content": "x"}]}
    assert read(write(tmp_path / "b.json", json.dumps(row))).rows == 1


def test_broken_syntax_ends_an_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"prompt": "a"},\n{"prompt": "b"}\n{"prompt": "c"}\n]')
    assert message(path) == (
        f"{path}:4: found invalid JSON (Expecting ',' delimiter at column 1), expected an array of "
        "objects; what follows was not read"
    )


def test_bad_syntax_and_bad_values_are_reported_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"prompt": "a"}\nnope\n{"prompt": "a", "completion": "b"}\n'
    )
    with pytest.raises(DataError) as error:
        load_examples(path, name="a")
    assert str(error.value).splitlines() == [
        f"{path}: 2 of 3 rows cannot be used; mend or remove:",
        "a.jsonl:1: found the keys 'prompt', expected also 'completion'",
        "a.jsonl:2: found invalid JSON (Expecting value at column 1), expected one JSON object",
    ]


def test_all_bad_rows_of_a_table_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt,completion\na\n"b\nb",c\nd,e,f\n"g,h\n')
    assert message(path).splitlines() == [
        f"{path}: 3 of 4 rows cannot be used; mend or remove:",
        "a.csv:2: found 1 cell, expected 2 as in the header (prompt, completion); put a cell that "
        "holds the separator or a line break in double quotes",
        "a.csv:5: found 3 cells, expected 2 as in the header (prompt, completion); put a cell that "
        "holds the separator or a line break in double quotes",
        "a.csv:6: found a double quote that is never closed, expected the end of the cell",
    ]


def test_blank_lines_of_a_table_are_skipped(tmp_path: Path) -> None:
    source = read(write(tmp_path / "a.csv", "\nprompt,completion\n\na,b\n\n"))
    assert [record.line for record in source.records] == [4]


def test_long_cells(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (record,) = read(write(tmp_path / "a.csv", "prompt\n" + "x" * 300_000 + "\n")).records
    assert len(record.values["prompt"]) == 300_000
    assert csv.field_size_limit() == before


def test_only_rows_with_invalid_text_are_bad_in_parquet(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    prompts = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a\xffc"))
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": prompts}), stream)
    path = write(tmp_path / "a.parquet", stream.getvalue())
    assert message(path) == f"{path}:2: found bytes that are not UTF-8, expected text"


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.jsonl", as_parquet(ROWS), "is a Parquet file; name it .parquet"),
        ("a.jsonl", packed(b"{}"), "is compressed by gzip; add .gz to its name"),
        (
            "a.json",
            pyarrow.compress(b"{}", "zstd", asbytes=True),
            "is compressed by Zstandard; add .zst to its name",
        ),
        (
            "a.csv",
            b"PK\x03\x04\x14\x00",
            "is a zip archive or an office document; unpack it, or save the sheet as CSV",
        ),
    ],
)
def test_what_the_name_does_not_tell(
    tmp_path: Path, name: str, content: bytes, advice: str
) -> None:
    path = write(tmp_path / name, content)
    assert message(path) == f"{path} {advice}"


def test_values_that_python_cannot_hold_are_bad_rows_of_parquet(tmp_path: Path) -> None:
    stamps = pyarrow.array([5, 2**62], pyarrow.timestamp("us"))
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "at": stamps}), stream)
    path = write(tmp_path / "a.parquet", stream.getvalue())
    assert message(path) == (
        f"{path}:2: found a value that cannot be read (date value out of range)"
    )


def test_columns_that_mean_nothing_are_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Prompt,Reply\n" + "a,b\n" * 30)
    with pytest.raises(DataError) as error:
        load_examples(path, name="a")
    assert str(error.value) == (
        f"{path}:2: found the keys 'Prompt', 'Reply' (did you mean 'prompt'?), expected "
        "'messages'; 'prompt' and 'completion'; 'instruction' and 'output'; 'conversations'; "
        "'prompt' and 'answer'; or 'text' (and so in all 30 rows)"
    )
