"""What reaches the disk before what: a power cut must find either the old state or the new one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asr.atomic import staged_folder, write_bytes

Event = tuple[str, int]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Flushes and renames in order, each with the inode of what was flushed or renamed."""
    seen: list[Event] = []
    fsync = os.fsync

    def flushed(fd: int) -> None:
        seen.append(("fsync", os.fstat(fd).st_ino))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", flushed)
    for name in ("replace", "rename"):
        real = getattr(os, name)

        def renamed(source: Any, target: Any, real: Any = real) -> None:
            seen.append(("rename", os.stat(source).st_ino))
            real(source, target)

        monkeypatch.setattr(os, name, renamed)
    return seen


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_file_is_flushed_then_renamed_then_its_folder_is(
    tmp_path: Path, events: list[Event]
) -> None:
    path = tmp_path / "manifest.json"
    write_bytes(path, b"new")
    file = inode(path)
    assert events == [("fsync", file), ("rename", file), ("fsync", inode(tmp_path))]


def test_a_folder_is_flushed_whole_then_renamed_then_its_parent_is(
    tmp_path: Path, events: list[Event]
) -> None:
    final = tmp_path / "adapter"
    with staged_folder(final) as staged:
        (staged / "inner").mkdir()
        (staged / "a").write_bytes(b"a")
        (staged / "inner" / "b").write_bytes(b"b")
    assert events[-2:] == [("rename", inode(final)), ("fsync", inode(tmp_path))]
    everything = [final, final / "inner", final / "a", final / "inner" / "b"]
    assert sorted(events[:-2]) == sorted(("fsync", inode(path)) for path in everything)
