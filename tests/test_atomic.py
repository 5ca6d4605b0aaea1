from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr import atomic
from asr.atomic import (
    STAGING_PREFIX,
    json_text,
    publish_folder,
    staged_folder,
    storage_errors,
    sweep_staging,
    write_bytes,
    write_json,
    write_text,
)
from asr.errors import DirectoryError, StorageError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), below, max_size=3)
    ),
    max_leaves=10,
)


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.startswith(STAGING_PREFIX)]


@given(first=st.binary(), second=st.binary())
def test_bytes_replace_bytes(first: bytes, second: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        write_bytes(path, first)
        write_bytes(path, second)
        assert path.read_bytes() == second
        assert os.listdir(folder) == ["file"]


@given(json_values)
def test_json_comes_back_and_is_the_same_bytes_each_time(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert json_text(json.loads(text)) == text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_json_keeps_order_and_characters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (
        '{\n  "b": "é",\n  "a": [\n    1,\n    2.5,\n    null\n  ]\n}\n'.encode()
    )


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        ([float("inf")], ValueError),
        ({"a": object()}, TypeError),
        ("\ud800", UnicodeEncodeError),
    ],
)
def test_what_json_cannot_hold_leaves_the_file(
    tmp_path: Path, value: Any, error: type[Exception]
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "before")
    with pytest.raises(error):
        write_json(path, value)
    assert path.read_text() == "before"
    assert leftovers(tmp_path) == []


def test_text_keeps_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x\r\ny\n")
    assert (tmp_path / "a").read_bytes() == b"x\r\ny\n"


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("x" * 255), b"1")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"1"


REFUSALS = [
    (errno.ENOSPC, "no space left on the device", "free some space"),
    (errno.EDQUOT, "the disk quota is used up", "free some space or raise the quota"),
    (
        errno.EROFS,
        "the file system is read-only",
        "choose a folder on a writable file system",
    ),
    (
        errno.EACCES,
        "no permission to write there",
        "correct the permissions or choose another one",
    ),
    (errno.EPERM, "writing there is not permitted", "correct the owner or choose another folder"),
]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize(("number", "reason", "advice"), REFUSALS)
def test_a_refused_write_names_the_path_and_keeps_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    number: int,
    reason: str,
    advice: str,
) -> None:
    path = tmp_path / "manifest.json"
    write_text(path, "old")

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, refuse)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 12345})())
    with pytest.raises(StorageError) as caught:
        write_text(path, "new")
    monkeypatch.undo()
    assert str(caught.value) == (
        f"cannot write {path}: {reason} (12,345 bytes free); {advice} and run the same command "
        "again; asr train goes on with --resume (what stood there before is intact)"
    )
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_free_bytes_are_those_of_the_disk_even_where_the_folder_is_missing(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"\([\d,]+ bytes free\)"),
        storage_errors(tmp_path / "not" / "there"),
    ):
        raise OSError(errno.ENOSPC, "full")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "missing" / "a", b"")
    with pytest.raises(KeyError), storage_errors(tmp_path):
        raise KeyError("x")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_really_full_device_is_a_storage_error(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)  # never O_CREAT: nothing is made in /dev
    try:
        with (
            pytest.raises(StorageError, match="no space left on the device"),
            storage_errors(tmp_path),
        ):
            os.write(full, b"x")
    finally:
        os.close(full)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "adapters" / "legal"
    with staged_folder(final) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "a").write_text("1")
        assert staged.parent == final.parent and staged.name.startswith(".staging-legal-")
        assert not final.exists()
    assert (final / "sub" / "a").read_text() == "1"
    assert leftovers(tmp_path) == []


def test_a_failure_while_filling_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "legal") as staged:
        (staged / "a").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_filling_is_a_storage_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="legal: no space left"),
        staged_folder(tmp_path / "legal"),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_published_over_something(tmp_path: Path, kind: str) -> None:
    staged, final = tmp_path / ".staging-x", tmp_path / "x"
    staged.mkdir()
    (staged / "new").write_text("new")
    if kind == "file":
        final.write_text("old")
    elif kind == "dangling link":
        final.symlink_to(tmp_path / "nowhere")
    else:
        final.mkdir()
        if kind == "folder":
            (final / "old").write_text("old")
    with pytest.raises(DirectoryError) as caught:
        publish_folder(staged, final)
    assert str(caught.value) == f"{final} exists already: it is written once and never replaced"
    with pytest.raises(DirectoryError), staged_folder(final):
        pytest.fail("the block must not run")
    assert (staged / "new").exists()
    assert not (final / "new").exists()


def test_sweeping_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".staging-theirs").write_text("1")
    (outside / "kept").write_text("1")
    model = tmp_path / "model"
    (model / "adapters" / ".staging-legal-0" / "deep" / ".staging-inner").mkdir(parents=True)
    (model / "adapters" / "legal").mkdir()
    (model / "adapters" / "legal" / "weights").write_text("1")
    (model / ".staging-manifest.json-1").write_text("1")
    (model / ".staging-link").symlink_to(outside)
    (model / "linked").symlink_to(outside)
    removed = sweep_staging(model)
    assert removed == [
        model / ".staging-link",
        model / ".staging-manifest.json-1",
        model / "adapters" / ".staging-legal-0",
    ]
    assert sorted(p.name for p in model.rglob("*")) == ["adapters", "legal", "linked", "weights"]
    assert (outside / "kept").exists() and (outside / ".staging-theirs").exists()
    assert sweep_staging(model) == []


def test_a_killed_writer_leaves_the_old_file_and_something_to_sweep(tmp_path: Path) -> None:
    """SIGKILL just before the rename: the old file stands, the new one is swept."""
    write_text(tmp_path / "manifest.json", "old")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from asr import atomic\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.write_text(Path(sys.argv[1]), 'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "manifest.json")])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "manifest.json").read_text() == "old"
    [leftover] = leftovers(tmp_path)
    assert leftover.read_text() == "new"
    assert sweep_staging(tmp_path) == [leftover]
    assert os.listdir(tmp_path) == ["manifest.json"]
