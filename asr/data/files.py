"""The bytes of a data file: found, unpacked, and refused by name where that fails."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from asr.errors import DataError, did_you_mean, first_line

COMPRESSED = (".gz", ".zst")
"""Suffixes of files that are unpacked while they are read."""

_LISTED_FILES = 8


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked where its name ends with ``.gz`` or ``.zst``.

    Raises:
        DataError: the file is missing (names near ones), a folder, unreadable, or no whole
            compressed file.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give one file of it ({_listing(path)})")
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(_missing(path)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise DataError(f"{str(path)!r} cannot be read: {error}") from error
    return _unpacked(path, raw)


def refuse_utf16(path: Path, raw: bytes) -> None:
    """Refuse text that is saved in UTF-16, as some spreadsheets and shells do.

    Raises:
        DataError: the bytes begin with a UTF-16 byte order mark.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is in UTF-16; save it as UTF-8")


def _unpacked(path: Path, raw: bytes) -> bytes:
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return raw
    try:
        return gzip.decompress(raw) if suffix == ".gz" else _unpacked_zstandard(raw)
    except EOFError as error:
        raise DataError(f"{path} ends in the middle of its compressed data; copy it again") from (
            error
        )
    except (OSError, zlib.error) as error:
        kind = "gzip" if suffix == ".gz" else "Zstandard"
        raise DataError(
            f"{path} is no {kind} file, or a damaged one ({first_line(error)}); copy it again, or "
            "name it without the suffix where it is not compressed"
        ) from error


def _unpacked_zstandard(raw: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(raw), "zstd") as stream:
        return bytes(stream.read())


def _files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except PermissionError:  # the names only help; without them the message says less
        return []


def _listing(folder: Path) -> str:
    names = _files(folder)
    if not names:
        return "no files are seen there"
    more = len(names) - _LISTED_FILES
    return "it holds: " + ", ".join(names[:_LISTED_FILES]) + (f", {more} more" if more > 0 else "")


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {path}: its folder {folder} does not exist either"
    near = did_you_mean(path.name, _files(folder))
    return f"there is no file {path}{near}; the folder {folder} was searched: {_listing(folder)}"
