"""One writer per routed model directory.

The lock is the operating system's (``flock``), not the file's existence: it ends with the process
that holds it, so a killed run leaves nothing to clean up. The file ``.lock`` holds, while the lock
is held, who holds it, and stays where it is, but in a folder that holds nothing else: a run that
was refused leaves nothing. Readers take no lock: everything they read is written atomically. POSIX
only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import weakref
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from asr.atomic import storage_errors
from asr.errors import DirectoryError, LockedError, StorageError

LOCK_FILE = ".lock"
"""Name of the lock file inside the directory."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: process id, host name, UTC time (ISO 8601), command."""

    pid: int
    host: str
    since: str
    command: str


class DirectoryLock:
    """The right to write to one directory; a context manager, not re-entrant.

    In multi-process training only the main process takes it. A forked child does not keep it alive.
    """

    def __init__(self, path: Path) -> None:
        """``path``: the routed model directory; it must exist when the lock is taken."""
        self.path = Path(path)
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock, without waiting.

        Raises:
            LockedError: another process (or another part of this one) holds it; names pid, host
                and since when.
            DirectoryError: there is no such directory.
            StorageError: the lock file cannot be written, or the file system has no locks.
            RuntimeError: this object holds the lock already.
        """
        if self._fd is not None:
            raise RuntimeError(f"the lock of {self.path} is held already by this object")
        file = self.path / LOCK_FILE
        while self._fd is None:
            try:
                with storage_errors(file):
                    # No truncation before the lock is ours: the holder's name stands in the file.
                    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise DirectoryError(f"there is no folder '{self.path}' to lock") from error
            try:
                self._flock(fd)
                if not _is_open_as(fd, file):
                    os.close(fd)
                    continue  # the holder before us took the file away: lock the one of now
                with storage_errors(file):
                    _write_holder(fd, _this_process())
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
        _HELD.add(self)

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held.

        The file is removed where the folder holds nothing else.
        """
        fd, self._fd = self._fd, None
        _HELD.discard(self)
        if fd is None:
            return
        try:
            os.ftruncate(fd, 0)
            file = self.path / LOCK_FILE
            # Giving back never fails because the folder is gone, or may not be looked into.
            with contextlib.suppress(OSError):
                if _is_open_as(fd, file) and os.listdir(self.path) == [LOCK_FILE]:
                    file.unlink()
        finally:
            os.close(fd)  # the lock ends with its last descriptor

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _flock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(_locked_message(self.path, _read_holder(fd))) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise StorageError(
                f"the file system of '{self.path}' has no locks ({error.strerror}), so two writers "
                "could meet: put the model directory on a local disk"
            ) from error

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


_HELD: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A forked worker shares the descriptor: it would keep the lock after its parent was killed.
    for lock in list(_HELD):
        lock._forget()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _this_process() -> Holder:
    return Holder(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        # The program and its command, not the whole line: arguments may hold secrets.
        command=" ".join([_program(), *sys.argv[1:2]]).strip(),
    )


def _program() -> str:
    """Name the program as it was called: ``python -m asr`` has its file's path for a name."""
    called = Path(sys.argv[0])
    return f"python -m {called.parent.name}" if called.name == "__main__.py" else called.name


def _is_open_as(fd: int, file: Path) -> bool:
    """Whether the open file is the one that stands at the path, and not one removed from there."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(file))
    except FileNotFoundError:
        return False


def _write_holder(fd: int, holder: Holder) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(asdict(holder)).encode(), 0)


def _read_holder(fd: int) -> Holder | None:
    """Return who wrote the file; None in the moment between a lock and its first write."""
    try:
        return Holder(**json.loads(os.pread(fd, 65536, 0)))
    except (ValueError, TypeError):
        return None


def _locked_message(path: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"'{path}' is being written by another process: wait for it to end"
    if holder.pid == os.getpid() and holder.host == socket.gethostname():
        return f"'{path}' is being written by this process itself since {holder.since}"
    return (
        f"'{path}' is being written by process {holder.pid} on host '{holder.host}' since "
        f"{holder.since} ({holder.command}): wait for it to end, or stop it there with "
        f"'kill {holder.pid}'"
    )
