"""JSON lines: what is tolerated, and every refusal with its line and its exact words."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.data.records import Record, read_records
from asr.errors import DataError


def write(folder: Path, content: bytes | str, name: str = "legal.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def message(path: Path | str, **options: int) -> str:
    with pytest.raises(DataError) as error:
        read_records(path, **options)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n',
    ],
)
def test_tolerated(tmp_path: Path, content: bytes) -> None:
    assert read_records(write(tmp_path, content)) == [Record(1, {"a": 1}), Record(2, {"a": 2})]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, '\n{"a": 1}\n  \r\n\n{"a": 2}\n\n')
    assert [record.line for record in read_records(path)] == [2, 5]


def test_values_are_kept(tmp_path: Path) -> None:
    row = '{"a": 1.5, "b": [null, true, -2e-3], "c": {"d": "x"}}'
    (record,) = read_records(write(tmp_path, row))
    assert record.values == {"a": 1.5, "b": [None, True, -0.002], "c": {"d": "x"}}


def test_line_separators_inside_strings_end_no_line(tmp_path: Path) -> None:
    text = "x\u2028y\x85z"
    path = write(tmp_path, '{"a": "' + text + '"}\n{"a": "\\ud83d\\ude00"}\n')
    assert [record.values["a"] for record in read_records(path)] == [text, "\U0001f600"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"a": NaN}', "found NaN, expected a finite number or null"),
        ('{"a": [-Infinity]}', "found -Infinity, expected a finite number or null"),
        ('{"a": 1e999}', "found 1e999, expected a number that fits a 64-bit float"),
        ('{"a": 1, "a": 2}', "found the key 'a' twice in one object, expected it once"),
        ('{"m": {"b": 1, "b": 1}}', "found the key 'b' twice in one object, expected it once"),
        ("[1]", "found an array, expected one JSON object"),
        ('"text"', "found a string, expected one JSON object"),
        ("null", "found null, expected one JSON object"),
        ("true", "found true, expected one JSON object"),
        ("17", "found the number 17, expected one JSON object"),
        (
            '{"a": 1',
            "found invalid JSON (Expecting ',' delimiter at column 8), expected one JSON object",
        ),
        (
            "{'a': 1}",
            "found invalid JSON (Expecting property name enclosed in double quotes at column 2), "
            "expected one JSON object",
        ),
        (
            '{"a": "1',
            "found invalid JSON (Unterminated string starting at column 7), expected one JSON "
            "object",
        ),
        (
            '{"a": 1} {"a": 2}',
            "found invalid JSON (Extra data at column 10), expected one JSON object",
        ),
        (
            b'{"a": "\xff"}',
            "found byte 0xff at byte 8 of the line, expected UTF-8 text",
        ),
        (
            '{"a": "\\ud800"}',
            "found \\ud800, half of a character, expected Unicode text",
        ),
        (
            "[" * 200_000,
            "found JSON nested too deeply, expected one JSON object",
        ),
    ],
)
def test_bad_row(tmp_path: Path, row: str | bytes, problem: str) -> None:
    raw = row if isinstance(row, bytes) else row.encode()
    path = write(tmp_path, b'{"a": 0}\n' + raw + b"\n")
    assert message(path) == f"{path}:2: {problem}"


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": ' + "9" * 5000 + "}\n")
    assert "legal.jsonl:1: found a number that is too long" in message(path)


def test_all_bad_rows_in_one_error_up_to_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 0}\n' + "oops\n" * 30)
    lines = message(path).splitlines()
    assert lines[0] == (
        f"{path}: 30 of 31 rows cannot be used; mend or remove (the first 20 problems):"
    )
    assert [line.split(": ")[0] for line in lines[1:]] == [
        f"legal.jsonl:{number}" for number in range(2, 22)
    ]
    assert len(message(path, limit_errors=3).splitlines()) == 4


def test_exactly_the_limit_hides_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "oops\n" * 20)
    lines = message(path).splitlines()
    assert lines[0] == f"{path}: 20 of 20 rows cannot be used; mend or remove:"
    assert len(lines) == 21


def test_one_json_value_over_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[\n{"a": 1},\n{"a": 2}\n]\n')
    assert message(path) == (
        f"{path}: this is a JSON array; one object per line is expected (name the file .json, or "
        "convert it: jq -c '.[]' legal.jsonl > lines.jsonl)"
    )
    assert "this is a JSON array" in message(write(tmp_path, '\ufeff[{"a": 1}]'))
    assert "this is one JSON object over several lines" in message(
        write(tmp_path, '{\n  "a": 1\n}\n')
    )


@pytest.mark.parametrize("content", ["", "\n \r\n", "\ufeff"])
def test_no_rows(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    assert message(path) == f"{path}: the file has 0 rows; one JSON object per line is expected"
    assert read_records(path, allow_empty=True) == []


def test_missing_file_names_near_ones(tmp_path: Path) -> None:
    write(tmp_path, "", "legal.jsonl")
    write(tmp_path, "", "medical.jsonl")
    path = tmp_path / "legall.jsonl"
    assert message(path) == (
        f"there is no file {path} (did you mean 'legal.jsonl'?); the folder {tmp_path} was "
        "searched: it holds: legal.jsonl, medical.jsonl"
    )


def test_missing_file_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert message(path) == (
        f"there is no file {path}; the folder {tmp_path} was searched: no files are seen there"
    )
    lost = tmp_path / "none" / "a.jsonl"
    assert message(lost) == (
        f"there is no file {lost}: its folder {tmp_path / 'none'} does not exist either"
    )


def test_missing_file_in_a_folder_that_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert message(tmp_path / "a.jsonl").endswith("was searched: no files are seen there")


def test_a_folder(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path, "", f"{index}.jsonl")
    names = ", ".join(f"{index}.jsonl" for index in range(8))
    assert message(tmp_path) == (
        f"{tmp_path} is a folder; give one file of it (it holds: {names}, 2 more)"
    )


def test_unreadable(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    path = file / "inside.jsonl"
    assert message(path) == f"{path} cannot be read: Not a directory"


def test_utf16(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}\n'.encode("utf-16"))
    assert message(path) == f"{path} is in UTF-16; save it as UTF-8"
