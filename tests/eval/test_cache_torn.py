"""A torn last line leaves nothing behind, however long it was."""

from __future__ import annotations

from pathlib import Path

from asr.eval.cache import CachedText, EvalCache


def test_a_long_torn_line_is_cut_off_before_a_short_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    with EvalCache(path) as cache:
        cache.put("first", CachedText("x"))
    whole = path.read_bytes()
    torn = b'{"key": "torn", "kind": "text", "text": "' + b"word " * 200
    path.write_bytes(whole + torn)
    with EvalCache(path) as cache:
        assert cache.torn
        cache.put("second", CachedText("y"))
    again = EvalCache(path)
    assert (len(again), again.skipped, again.torn) == (2, 0, False)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[0] == whole and len(lines) == 2 and lines[1].endswith(b"\n")
