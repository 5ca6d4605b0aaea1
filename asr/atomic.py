"""Writes that a kill at any moment cannot leave half done.

A file is written beside its place, flushed to the disk and renamed over it; a folder is filled
beside its place and renamed into it. Everything unfinished carries a name that starts with
``.staging-``, so a later run can tell it from finished work and remove it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr.errors import DirectoryError, StorageError

STAGING_PREFIX = ".staging-"
"""Start of the name of every unfinished file and folder."""

_REASONS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the device", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or raise the quota"),
    errno.EROFS: ("the file system is read-only", "choose a folder on a writable file system"),
    errno.EACCES: ("no permission to write there", "correct the permissions or choose another one"),
    errno.EPERM: ("writing there is not permitted", "correct the owner or choose another folder"),
}


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, or leave it as it was.

    The folder must exist. The new file has ordinary permissions (0666 less the umask).

    Raises:
        StorageError: the file system refused the write (full, quota, read-only, permission).
        OSError: any other failure, as it is (a missing folder, for example).
    """
    staged = _staging_name(path)
    with storage_errors(path):
        try:
            # O_EXCL: never somebody else's file. Mode 0666: the umask decides, as for open().
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8, line ends as given.

    Raises:
        UnicodeEncodeError: ``text`` holds a lone surrogate.
        StorageError, OSError: as :func:`write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace the file at ``path`` by ``value`` as JSON; see :func:`json_text`.

    Raises:
        TypeError, ValueError: as :func:`json_text`; the file is as it was.
        StorageError, OSError: as :func:`write_bytes`.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return ``value`` as JSON text: same value, same bytes.

    Two spaces of indent, keys in the order of the mapping (the order of domains has a meaning),
    characters as they are, one newline at the end.

    Raises:
        ValueError: a NaN or an infinity, which JSON does not have; or a circular value.
        TypeError: something that JSON cannot hold.
    """
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder beside ``final``; publish it as ``final`` when the block ends well.

    If the block raises, the staged folder is removed and ``final`` does not appear.

    Raises:
        DirectoryError: ``final`` exists, at the start or at the end.
        StorageError: the file system refused a write, in the block too.
    """
    _refuse_existing(final)
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = _staging_name(final)
        staged.mkdir()
        try:
            yield staged
            publish_folder(staged, final)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def publish_folder(staged: Path, final: Path) -> None:
    """Rename the filled folder ``staged`` to ``final``, all its files being on the disk first.

    Both must lie on one file system. Two publishers of one name are kept apart by the directory's
    lock, not here: POSIX has no portable rename that refuses to replace an empty folder.

    Raises:
        DirectoryError: ``final`` exists.
        StorageError: the file system refused.
    """
    _refuse_existing(final)
    with storage_errors(final):
        for folder, _, files in os.walk(staged):
            for name in files:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        os.rename(staged, final)
        _sync_folder(final.parent)


def sweep_staging(path: Path) -> list[Path]:
    """Remove what killed runs left unfinished anywhere under ``path``; return what was removed.

    Call it as the holder of the directory's lock only: another writer's unfinished files look the
    same. Links are removed, never followed.

    Raises:
        StorageError: the file system refused.
    """
    removed: list[Path] = []
    with storage_errors(path):
        for parent, folders, files in os.walk(path):
            for name in sorted(n for n in (*folders, *files) if n.startswith(STAGING_PREFIX)):
                leftover = Path(parent, name)
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
                removed.append(leftover)
            folders[:] = sorted(n for n in folders if not n.startswith(STAGING_PREFIX))
    return removed


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the refusals of a file system inside the block into a :class:`StorageError`.

    Raises:
        StorageError: for a full disk, a used-up quota, a read-only file system, no permission.
            Other ``OSError``s pass through as they are: they are not the user's to mend.
    """
    try:
        yield
    except OSError as error:
        known = _REASONS.get(error.errno or 0)
        if known is None:
            raise
        reason, advice = known
        raise StorageError(
            f"cannot write {path}: {reason} ({_free_bytes(path)}); {advice} and run the same "
            "command again; asr train goes on with --resume (what stood there before is intact)"
        ) from error


def _free_bytes(path: Path) -> str:
    for folder in (path, *path.absolute().parents):
        try:
            return f"{shutil.disk_usage(folder).free:,} bytes free"
        except OSError:
            continue  # not there, or not to be looked into: its parent lies on the same disk
    return "free bytes unknown"


def _staging_name(path: Path) -> Path:
    # The name is cut: with prefix and token it must stay below the 255 bytes of a file name.
    return path.parent / f"{STAGING_PREFIX}{path.name[:40]}-{secrets.token_hex(8)}"


def _refuse_existing(final: Path) -> None:
    if os.path.lexists(final):
        raise DirectoryError(f"{final} exists already: it is written once and never replaced")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk; some network file systems answer EINVAL and need no such call."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
