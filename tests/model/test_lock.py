from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asr.errors import DirectoryError, LockedError, StorageError
from asr.model.lock import LOCK_FILE, DirectoryLock

HOLD = """
import sys
from pathlib import Path
from asr.model.lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""

HOLD_AND_FORK = """
import os, sys, time
from pathlib import Path
from asr.model.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
child = os.fork()
if child == 0:
    print(os.getpid(), lock.held, flush=True)
    time.sleep(600)
    os._exit(0)
sys.stdin.read()
"""


@contextmanager
def holder(script: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_named(tmp_path: Path) -> None:
    with holder(HOLD, tmp_path) as (process, said):
        assert said == "locked"
        with pytest.raises(LockedError) as caught:
            DirectoryLock(tmp_path).acquire()
        assert re.fullmatch(
            rf"'{re.escape(str(tmp_path))}' is being written by process {process.pid} on host "
            rf"'{re.escape(socket.gethostname())}' since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 "
            rf"\(.*\): wait for it to end, or stop it there with 'kill {process.pid}'",
            str(caught.value),
        )
        process.communicate("")  # ends the holder
        with DirectoryLock(tmp_path) as lock:
            assert lock.held


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with holder(HOLD, tmp_path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == process.pid
        with DirectoryLock(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_forked_worker_does_not_keep_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    with holder(HOLD_AND_FORK, tmp_path) as (process, said):
        worker, held = said.split()
        try:
            assert held == "False"
            with pytest.raises(LockedError):
                DirectoryLock(tmp_path).acquire()
            process.send_signal(signal.SIGKILL)
            process.wait()
            os.kill(int(worker), 0)  # still alive
            with DirectoryLock(tmp_path) as lock:
                assert lock.held
        finally:
            os.kill(int(worker), signal.SIGKILL)


def test_this_process_itself_is_named(tmp_path: Path) -> None:
    with (
        DirectoryLock(tmp_path),
        pytest.raises(LockedError, match="is being written by this process itself since"),
    ):
        DirectoryLock(tmp_path).acquire()


def test_release_lets_the_next_one_in_and_keeps_the_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    lock = DirectoryLock(tmp_path)
    lock.release()
    lock.acquire()
    with pytest.raises(RuntimeError, match="held already by this object"):
        lock.acquire()
    assert set(json.loads((tmp_path / LOCK_FILE).read_text())) == {
        "pid",
        "host",
        "since",
        "command",
    }
    lock.release()
    assert not lock.held
    assert (tmp_path / LOCK_FILE).read_text() == ""
    with DirectoryLock(tmp_path):
        assert not lock.held


def test_an_otherwise_empty_folder_loses_the_file(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with DirectoryLock(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).write_text("of somebody else")
    assert (tmp_path / LOCK_FILE).read_text() == "of somebody else"
    with DirectoryLock(tmp_path) as lock:
        (tmp_path / LOCK_FILE).unlink()
        tmp_path.rmdir()
    assert not lock.held


def test_a_file_that_was_taken_away_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its holder may have removed it and gone."""
    first = DirectoryLock(tmp_path)
    first.acquire()
    flock = fcntl.flock

    def late(fd: int, flags: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.release()
        flock(fd, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        with pytest.raises(LockedError):
            DirectoryLock(tmp_path).acquire()


def test_an_exception_releases(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DirectoryLock(tmp_path):
        raise KeyError("x")
    with DirectoryLock(tmp_path) as lock:
        assert lock.held


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_an_unreadable_holder_is_still_a_lock(tmp_path: Path, text: str) -> None:
    with (tmp_path / LOCK_FILE).open("w") as file:
        file.write(text)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError) as caught:
            DirectoryLock(tmp_path).acquire()
    assert str(caught.value) == (
        f"'{tmp_path}' is being written by another process: wait for it to end"
    )


def test_rubbish_in_a_free_lock_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("x" * 5000)
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError) as caught:
        DirectoryLock(tmp_path / "no").acquire()
    assert str(caught.value) == f"there is no folder '{tmp_path / 'no'}' to lock"


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError) as caught:
        DirectoryLock(tmp_path).acquire()
    assert str(caught.value) == (
        f"the file system of '{tmp_path}' has no locks (No locks available), so two writers could "
        "meet: put the model directory on a local disk"
    )


def test_a_refused_lock_file_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=r"\.lock: the file system is read-only"):
        DirectoryLock(tmp_path).acquire()


def test_the_holder_names_no_arguments_beyond_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/asr", "train", "--token", "hf_secret"])
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["command"] == "asr train"
