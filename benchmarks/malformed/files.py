"""Files that break below the rows: syntax, encodings, tables, compression, and no files at all."""

from __future__ import annotations

import datetime
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

from benchmarks.malformed.case import Case, checked
from benchmarks.malformed.rows import lines, rows_of

PAIRS = rows_of("prompt-completion", 5)
GOOD_LINES = lines(PAIRS)

BAD_LINES: dict[str, bytes] = {
    "NaN": b'{"prompt": "a", "completion": "b", "score": NaN}',
    "Infinity": b'{"prompt": "a", "completion": "b", "score": Infinity}',
    "-Infinity in meta": b'{"prompt": "a", "completion": "b", "meta": {"x": -Infinity}}',
    "a number beyond 64 bits": b'{"prompt": "a", "completion": "b", "score": 1e999}',
    "a number of 5000 digits": b'{"prompt": "a", "completion": "b", "id": ' + b"9" * 5000 + b"}",
    "an open brace": b'{"prompt": "a", "completion": "b"',
    "an open string": b'{"prompt": "a", "completion": "b',
    "an open key": b'{"prompt": "a", "comple',
    "a brace too many": b'{"prompt": "a", "completion": "b"}}',
    "single quotes": b"{'prompt': 'a', 'completion': 'b'}",
    "no quotes": b"{prompt: a, completion: b}",
    "a comma too many": b'{"prompt": "a", "completion": "b",}',
    "a comma too few": b'{"prompt": "a" "completion": "b"}',
    "a comma behind the row": b'{"prompt": "a", "completion": "b"},',
    "a colon too few": b'{"prompt" "a", "completion": "b"}',
    "two rows in a line": b'{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}',
    "a comment": b"# from here on by hand",
    "Python's True": b'{"prompt": "a", "completion": "b", "ok": True}',
    "plain words": b"What is the capital of France? Paris",
    "an array": b'["a", "b"]',
    "a string": b'"a"',
    "a number": b"12",
    "null": b"null",
    "false": b"false",
    "a key twice": b'{"prompt": "a", "prompt": "c", "completion": "b"}',
    "a key of meta twice": b'{"prompt": "a", "completion": "b", "meta": {"x": 1, "x": 2}}',
    "a lone high surrogate": b'{"prompt": "\\ud83d", "completion": "b"}',
    "a lone low surrogate": b'{"prompt": "a", "completion": "\\udc00"}',
    "a surrogate in a key": b'{"prompt": "a", "completion": "b", "\\ud800": 1}',
    "a bad escape": b'{"prompt": "\\x41", "completion": "b"}',
    "half an escape": b'{"prompt": "\\u00", "completion": "b"}',
    "a NUL byte": b'{"prompt": "a\x00", "completion": "b"}',
    "a NUL, escaped": b'{"prompt": "a\\u0000", "completion": "b"}',
    "a control character": b'{"prompt": "a\x07", "completion": "b"}',
    "a lone byte 0xff": b'{"prompt": "a\xff", "completion": "b"}',
    "latin-1": b'{"prompt": "caf\xe9", "completion": "b"}',
    "half a UTF-8 character": b'{"prompt": "a\xe2\x82", "completion": "b"}',
    "an overlong encoding": b'{"prompt": "a\xc0\xaf", "completion": "b"}',
    "a surrogate as UTF-8": b'{"prompt": "a\xed\xa0\x80", "completion": "b"}',
    "a byte order mark in the middle": b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}',
    "an abyss of arrays": b"[" * 100_000,
    "a merge conflict": b"<<<<<<< HEAD",
}
"""Each stands as the third line between good ones."""

JSON_ARRAYS: dict[str, bytes] = {
    "no end": b"[" + b",".join(json.dumps(row).encode() for row in PAIRS),
    "an open object": b'[{"prompt": "a", "completion": "b"}, {"prompt": "c"',
    "a comma too many": b'[{"prompt": "a", "completion": "b"},]',
    "a comma too few": b'[{"prompt": "a", "completion": "b"}\n{"prompt": "c"}]',
    "something behind it": json.dumps(PAIRS).encode() + b" x",
    "a number in it": json.dumps([*PAIRS, 3]).encode(),
    "null in it": json.dumps([PAIRS[0], None]).encode(),
    "arrays in it": json.dumps([[row["prompt"], row["completion"]] for row in PAIRS[:1]]).encode(),
    "NaN in it": json.dumps([*PAIRS, {**PAIRS[0], "x": float("nan")}]).encode(),
    "a key twice": b'[{"prompt": "a", "prompt": "b", "completion": "c"}]',
    "invalid UTF-8": b'[{"prompt": "\xff", "completion": "c"}]',
    "a surrogate": b'[{"prompt": "\\ud800", "completion": "c"}]',
    "a long number": b'[{"prompt": "a", "completion": "c", "x": ' + b"1" * 5000 + b"}]",
    "an abyss": b"[" * 100_000,
    "an empty completion": json.dumps([*PAIRS, {"prompt": "a", "completion": ""}]).encode(),
    "one object over lines": json.dumps(PAIRS[0], indent=2).encode(),
    "an object around it": json.dumps({"data": PAIRS}, indent=2).encode(),
    "UTF-16": json.dumps(PAIRS).encode("utf-16"),
    "nothing": b"",
    "an empty array": b"[]",
    "only an opening": b"[",
}

HEAD = b"prompt,completion\n"
CSV_FILES: dict[str, bytes] = {
    "a short row": HEAD + b"a,b\nc\nd,e\n",
    "a long row": HEAD + b"a,b\nc,d,e\nf,g\n",
    "a comma that is not quoted": HEAD + b"a,b\nOh, really?,no\n",
    "a quote never closed": HEAD + b'a,b\n"c,d\ne,f\n',
    "text behind a quote": HEAD + b'a,b\n"c"x,d\n',
    "an empty cell": HEAD + b"a,b\nc,\n",
    "a blank cell": HEAD + b"a,b\n  ,d\n",
    "a column twice": b"prompt,prompt,completion\na,b,c\n",
    "a column without a name": b"prompt,,completion\na,b,c\n",
    "no header": b"What is one?,1\nWhat is two?,2\n",
    "a header without the answer": b"prompt,id\na,1\nb,2\n",
    "other columns": b"premise,hypothesis\na,b\nc,d\n",
    "two columns for the prompt": b"question,query,answer\na,b,c\n",
    "semicolons": b"prompt;completion\na;b\n",
    "tabs": b"prompt\tcompletion\na\tb\n",
    "bars": b"prompt|completion\na|b\n",
    "a NUL byte": HEAD + b"a\x00,b\n",
    "a lone byte 0xff": HEAD + b"a\xff,b\n",
    "latin-1": HEAD + b"caf\xe9,b\n",
    "UTF-16": (HEAD + b"a,b\n").decode().encode("utf-16"),
    "a header alone": HEAD,
    "nothing": b"",
    "blank lines": b"\n\n\n",
    "messages as text": b'messages\n"[{""role"": ""user""}]"\n',
    "meta as text": b"prompt,completion,meta\na,b,x\n",
}


def parquet(columns: dict[str, list[Any]], types: dict[str, Any] | None = None) -> bytes:
    """Return a Parquet file of these columns."""
    import pyarrow
    from pyarrow import parquet as writer

    arrays = {
        name: pyarrow.array(values, (types or {}).get(name)) for name, values in columns.items()
    }
    stream = io.BytesIO()
    writer.write_table(pyarrow.table(arrays), stream)
    return stream.getvalue()


def parquet_files() -> dict[str, bytes]:
    """Return malformed Parquet files by what is wrong with them."""
    import pyarrow

    good = parquet({"prompt": ["a", "b"], "completion": ["c", "d"]})
    day = datetime.datetime(2026, 1, 1)
    return {
        "not one": b"this is no table at all, but long enough for a footer",
        "JSON lines": GOOD_LINES,
        "nothing": b"",
        "the first half": good[: len(good) // 2],
        "the last half": good[len(good) // 2 :],
        "the magic number alone": b"PAR1PAR1",
        "a broken footer": good[:-12] + b"\xff" * 8 + good[-4:],
        "no rows": parquet({"prompt": [], "completion": []}),
        "numbers for prompts": parquet({"prompt": [1, 2], "completion": ["c", "d"]}),
        "an empty cell": parquet({"prompt": ["a", None], "completion": ["c", "d"]}),
        "an empty string": parquet({"prompt": ["a", ""], "completion": ["c", "d"]}),
        "bytes for prompts": parquet({"prompt": [b"a", b"b"], "completion": ["c", "d"]}),
        "dates for answers": parquet({"prompt": ["a", "b"], "completion": [day, day]}),
        "no answers": parquet({"prompt": ["a", "b"]}),
        "other columns": parquet({"premise": ["a", "b"], "hypothesis": ["c", "d"]}),
        "a text and a label": parquet({"text": ["a", "b"], "label": [0, 1]}),
        "lists for prompts": parquet({"prompt": [["a"], ["b"]], "completion": ["c", "d"]}),
        "turns without content": parquet({"messages": [[{"role": "user"}]]}),
        "NaN in meta": parquet(
            {"prompt": ["a"], "completion": ["b"], "meta": [{"x": float("nan")}]}
        ),
        "a date in meta": parquet({"prompt": ["a"], "completion": ["b"], "meta": [{"x": day}]}),
        "meta that is text": parquet({"prompt": ["a"], "completion": ["b"], "meta": ["x"]}),
        "text that is not UTF-8": _not_utf8(pyarrow),
    }


def _not_utf8(pyarrow: Any) -> bytes:
    from pyarrow import parquet as writer

    array = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pyarrow.py_buffer(b"a\xff")
    )
    stream = io.BytesIO()
    writer.write_table(pyarrow.table({"prompt": array, "completion": ["b"]}), stream)
    return stream.getvalue()


def side_files() -> Iterator[Case]:
    """Yield side files that do not go with their data."""
    good = [{"id": index} for index in range(5)]
    wrong: dict[str, bytes] = {
        "a row too few": lines(good[:4]),
        "a row too many": lines([*good, {"id": 5}]),
        "nothing": b"",
        "an array": json.dumps(good).encode(),
        "broken JSON": lines(good[:4]) + b'{"id": \n',
        "numbers": b"1\n2\n3\n4\n5\n",
        "NaN": lines(good[:4]) + b'{"id": NaN}\n',
        "invalid UTF-8": lines(good[:4]) + b'{"id": "\xff"}\n',
    }
    for what, content in wrong.items():
        files: dict[str, bytes | None] = {"data.jsonl": GOOD_LINES, "data.meta.jsonl": content}
        yield Case(
            "a side file",
            what,
            files,
            ("check", "data.jsonl"),
            "data.meta.jsonl",
            what == "numbers",
        )
    rows = [{**row, "meta": {"id": 7}} for row in PAIRS]
    files = {"data.jsonl": lines(rows), "data.meta.jsonl": lines(good)}
    yield Case("a side file", "it contradicts", files, ("check", "data.jsonl"), "data.meta.jsonl",
               several=True)  # fmt: skip
    files = {"data.jsonl": GOOD_LINES, "data.meta.jsonl": None}
    yield Case("a side file", "a folder", files, ("check", "data.jsonl"), "data.meta.jsonl")


def odd_files() -> Iterator[Case]:
    """Yield what is no data file, or is one under another name."""
    packed = gzip.compress(GOOD_LINES)
    wrong: dict[str, tuple[str, bytes | None]] = {
        "an empty file": ("data.jsonl", b""),
        "blank lines": ("data.jsonl", b"\n \r\n\n"),
        "a byte order mark alone": ("data.jsonl", b"\xef\xbb\xbf"),
        "UTF-16, little end first": ("data.jsonl", b"\xff\xfe" + "{}".encode("utf-16-le")),
        "UTF-16, big end first": ("data.jsonl", b"\xfe\xff" + "{}".encode("utf-16-be")),
        "an array as lines": ("data.jsonl", json.dumps(PAIRS).encode()),
        "an array over lines": ("data.jsonl", json.dumps(PAIRS, indent=1).encode()),
        "an object over lines": ("data.jsonl", json.dumps(PAIRS[0], indent=1).encode()),
        "a folder": ("data.jsonl", None),
        "a folder without suffix": ("data", None),
        "half a gzip": ("data.jsonl.gz", packed[: len(packed) // 2]),
        "a damaged gzip": ("data.jsonl.gz", packed[:20] + b"\0\0\0\0" + packed[24:]),
        "a gzip with a wrong checksum": ("data.jsonl.gz", packed[:-8] + b"\0\0\0\0" + packed[-4:]),
        "a gzip that is none": ("data.jsonl.gz", GOOD_LINES),
        "an empty gzip": ("data.jsonl.gz", b""),
        "a gzip of nothing": ("data.jsonl.gz", gzip.compress(b"")),
        "a zst that is none": ("data.jsonl.zst", GOOD_LINES),
        "a gzip called zst": ("data.jsonl.zst", packed),
        "a gzip without its suffix": ("data.jsonl", packed),
        "Parquet called jsonl": ("data.jsonl", parquet({"prompt": ["a"], "completion": ["b"]})),
        "CSV called jsonl": ("data.jsonl", HEAD + b"a,b\n"),
        "JSON lines called csv": ("data.csv", GOOD_LINES),
        "CSV called json": ("data.json", HEAD + b"a,b\n"),
        "plain text": ("data.txt", b"The river flows to the sea.\n"),
        "a spreadsheet": ("data.xlsx", b"PK\x03\x04" + bytes(60)),
        "a zip": ("data.zip", b"PK\x03\x04" + bytes(60)),
        "a pickle": ("data.pkl", b"\x80\x04\x95"),
        "a web page": ("data.jsonl", b"<!DOCTYPE html>\n<html>404</html>\n"),
        "a Git LFS pointer": (
            "data.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        ),
        "random bytes": ("data.jsonl", bytes(range(256)) * 4),
    }
    many = {"CSV called jsonl", "a web page", "a Git LFS pointer", "random bytes",
            "a gzip without its suffix", "CSV called json", "JSON lines called csv"}  # fmt: skip
    for what, (file, content) in wrong.items():
        yield checked("a file of another kind", what, file, content, several=what in many)
    yield Case("no such file", "a typing error", {"data.jsonl": GOOD_LINES}, ("check", "dat.jsonl"),
               "dat.jsonl")  # fmt: skip
    yield Case("no such file", "no such folder", {}, ("check", "no/data.jsonl"), "no/data.jsonl")
    yield Case("no such file", "a path below a file", {"data.jsonl": GOOD_LINES},
               ("check", "data.jsonl/x.jsonl"), "data.jsonl")  # fmt: skip
    yield Case("no such file", "a link to nothing", {}, ("check", "data.jsonl"), "data.jsonl",
               links={"data.jsonl": "gone.jsonl"})  # fmt: skip
    yield Case("no such file", "a link to itself", {}, ("check", "data.jsonl"), "data.jsonl",
               links={"data.jsonl": "data.jsonl"})  # fmt: skip
    yield Case("no such file", "a name too long", {}, ("check", "x" * 300 + ".jsonl"), "xxx")
    good: dict[str, bytes | None] = {"data.jsonl": GOOD_LINES, "bad.jsonl": b"nope\n"}
    yield Case("the test file", "missing", good, ("check", "data.jsonl", "--test", "none.jsonl"),
               "none.jsonl")  # fmt: skip
    yield Case("the test file", "broken", good, ("check", "data.jsonl", "--test", "bad.jsonl"),
               "bad.jsonl")  # fmt: skip
    yield Case("the test file", "empty", {**good, "e.jsonl": b""},
               ("check", "data.jsonl", "--test", "e.jsonl"), "e.jsonl")  # fmt: skip
    for word in ("message", "jsonl", "", "prompt_completion"):
        command = ("check", "data.jsonl", "--format", word)
        yield Case("no such format", repr(word), good, command, "format")


def cases() -> Iterator[Case]:
    """Yield them all."""
    middle = GOOD_LINES.split(b"\n")
    for what, line in BAD_LINES.items():
        content = b"\n".join([*middle[:2], line, *middle[2:]])
        yield checked("a broken line", what, "data.jsonl", content)
    crlf = GOOD_LINES.replace(b"\n", b"\r\n") + b'{"prompt": "a"}\r\n'
    yield checked("a broken line", "the last of CRLF lines", "data.jsonl", b"\xef\xbb\xbf" + crlf)
    packed = gzip.compress(GOOD_LINES + b"nope\n")
    yield checked("a broken line", "inside a gzip", "data.jsonl.gz", packed)
    for what, content in JSON_ARRAYS.items():
        yield checked("a broken JSON array", what, "data.json", content)
    for what, content in CSV_FILES.items():
        yield checked("a broken CSV", what, "data.csv", content)
    yield checked("a broken CSV", "commas in a .tsv", "data.tsv", HEAD + b"a,b\n")
    for what, content in parquet_files().items():
        both = what.startswith(("numbers", "bytes", "dates", "lists"))  # of its rows are wrong
        yield checked("a broken Parquet", what, "data.parquet", content, several=both)
    yield from side_files()
    yield from odd_files()
