"""Generations and losses kept by what determines them, so that no adapter is scored twice.

Adapters are immutable, so what an adapter's hash answers to given token ids under given settings
never changes: after domain k only what is new runs, and an interrupted evaluation resumes.

File: JSON lines, append only, one object per entry::

    {"key": "<sha256>", "kind": "text", "text": "...", "finish": "stop", <whose>}
    {"key": "<sha256>", "kind": "loss", "sum_nll": 12.5, "tokens": 7, <whose>}

where <whose> is ``"adapter": "a", "domain": "b"``: the adapter (or ``base``) that answered, and the
domain whose prompt it is. A key is a hash and tells neither, and :func:`forget_domain` must know.

A kill can only tear the last line: a line without its newline is ignored, and cut off at the next
flush. A damaged line in the middle is skipped and counted in :attr:`EvalCache.skipped`. Where a
key stands twice, the later line holds. One writer at a time (the model directory's lock).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.atomic import storage_errors, write_bytes
from asr.errors import StorageError


@dataclass(frozen=True)
class CachedText:
    """A generation: the text, and why it ended (``"stop"`` or ``"length"``)."""

    text: str
    finish: str = "stop"


@dataclass(frozen=True)
class CachedLoss:
    """A loss: summed negative log likelihood in nats over ``tokens`` supervised tokens."""

    sum_nll: float
    tokens: int


Entry = CachedText | CachedLoss


def text_key(model_hash: str, prompt_ids: Sequence[int], settings: Mapping[str, Any]) -> str:
    """Return the key of a generation.

    Args:
        model_hash: the adapter's hash, or the base's fingerprint where no adapter ran.
        prompt_ids: token ids of the whole prompt.
        settings: everything that shapes the text (max_new_tokens, sampling, dtype, ...); must be
            JSON. The order of its keys does not matter.

    Raises:
        TypeError: if ``settings`` holds something that is not JSON.
        ValueError: if it holds NaN or infinity, or a token id is negative.
    """
    return _key("text", model_hash, [prompt_ids], settings)


def loss_key(
    model_hash: str, input_ids: Sequence[int], labels: Sequence[int], settings: Mapping[str, Any]
) -> str:
    """Return the key of a loss: as :func:`text_key`, with the labels (-100: unsupervised).

    Raises:
        TypeError: as in :func:`text_key`.
        ValueError: as in :func:`text_key` (labels may be negative).
    """
    if len(input_ids) != len(labels):
        raise ValueError(f"{len(input_ids)} input ids but {len(labels)} labels")
    return _key("loss", model_hash, [input_ids, labels], settings)


def _key(
    kind: str, model_hash: str, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]
) -> str:
    if any(token < 0 for token in rows[0]):
        raise ValueError("token ids must not be negative")
    digest = hashlib.sha256()
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for part in (kind, model_hash, canonical):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # lengths: no two parts can merge
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + np.asarray(row, dtype="<i8").tobytes())
    return digest.hexdigest()


class EvalCache:
    """The entries of one cache file, in memory, with appends gathered until :meth:`flush`.

    Attributes:
        path: the JSON lines file; made (with its folder) by the first flush.
        skipped: damaged lines met while loading, the torn last line not counted.
        torn: whether the file ended in a torn line.

    Example::

        with EvalCache(folder / "generations.jsonl") as cache:
            if (hit := cache.get(key)) is None:
                cache.put(key, CachedText(generate()))
    """

    def __init__(self, path: str | Path) -> None:
        """Load what ``path`` holds; a file that is not there is an empty cache.

        Raises:
            StorageError: if the file exists and cannot be read.
        """
        self.path = Path(path)
        self.skipped = 0
        self.torn = False
        self._entries: dict[str, Entry] = {}
        self._pending: list[bytes] = []
        self._good_bytes = 0  # length of the file up to its last complete line
        self._load()

    def __enter__(self) -> EvalCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.flush()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """Return the entry of ``key`` (flushed or not), or None."""
        return self._entries.get(key)

    def put(
        self, key: str, entry: Entry, *, adapter: str | None = None, domain: str | None = None
    ) -> None:
        """Keep ``entry`` under ``key``; on disk after the next :meth:`flush`.

        Args:
            key: of :func:`text_key` or :func:`loss_key`.
            entry: what to keep.
            adapter: name of the domain whose adapter answered, or ``base``.
            domain: name of the domain whose prompt it is. An entry that lacks one of the two goes
                with the first domain that is removed.

        Raises:
            ValueError: if a loss is not finite or has no tokens.
        """
        if isinstance(entry, CachedLoss) and not (
            math.isfinite(entry.sum_nll) and entry.tokens > 0
        ):
            raise ValueError(f"a loss must be finite and have tokens, got {entry}")
        if self._entries.get(key) == entry:
            return
        kind = "text" if isinstance(entry, CachedText) else "loss"
        owners = {} if adapter is None or domain is None else {"adapter": adapter, "domain": domain}
        record = {"key": key, "kind": kind, **asdict(entry), **owners}
        line = json.dumps(record, allow_nan=False)
        self._entries[key] = entry
        self._pending.append(line.encode() + b"\n")

    def flush(self) -> None:
        """Append what was put since the last flush and force it to disk. Call once per batch.

        Raises:
            StorageError: if the file cannot be written; what was put stays pending, and the next
                flush cuts off whatever part of it reached the file.
        """
        if not self._pending:
            return
        data = b"".join(self._pending)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # "r+b" and not "ab": a torn line, from a kill or a full disk, is cut off first.
            mode = "r+b" if self.path.exists() else "w+b"
            with self.path.open(mode) as file:
                file.truncate(self._good_bytes)
                file.seek(self._good_bytes)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"cannot write the evaluation cache {self.path}: {error.strerror or error}; "
                "free space or mend permissions, then run the same command again"
            ) from error
        self._good_bytes += len(data)
        self._pending.clear()
        self.torn = False

    def _load(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(
                f"cannot read the evaluation cache {self.path}: {error.strerror or error}; "
                "mend its permissions, or delete it to evaluate again"
            ) from error
        complete, newline, rest = data.rpartition(b"\n")
        self._good_bytes = len(complete) + len(newline)
        self.torn = bool(rest)
        for line in complete.split(b"\n") if newline else []:
            try:
                key, entry = _parse(line)
            except (ValueError, KeyError, TypeError):
                self.skipped += 1
            else:
                self._entries[key] = entry


def forget_domain(path: Path, name: str) -> tuple[int, int]:
    """Take out of a cache file what a domain's adapter answered, and all answers to its prompts.

    Lines that do not say whose they are (damaged, torn, or written before this was recorded) go
    too: they may be the domain's. The file is replaced atomically, or deleted if nothing stays.
    No :class:`EvalCache` of the file may be open.

    Returns:
        Numbers of lines dropped and of lines that stay.

    Raises:
        StorageError: the file cannot be read or written; it is as it was.
    """
    with storage_errors(path):
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0, 0
        kept = [line for line in lines if _is_anothers(line, name)]
        if not kept:
            path.unlink()
        elif len(kept) < len(lines):
            write_bytes(path, b"".join(kept))
    return len(lines) - len(kept), len(kept)


def _is_anothers(line: bytes, name: str) -> bool:
    """Whether an entry is whole and surely has nothing to do with the domain."""
    try:
        _parse(line)
        record = json.loads(line)
        owners = record["adapter"], record["domain"]
    except (ValueError, KeyError, TypeError):
        return False
    return line.endswith(b"\n") and all(isinstance(o, str) and o != name for o in owners)


def _parse(line: bytes) -> tuple[str, Entry]:
    """Return key and entry of one line; ValueError, KeyError or TypeError where it is damaged."""
    record = json.loads(line)
    key, kind = record["key"], record["kind"]
    if not isinstance(key, str):
        raise TypeError("key is not a string")
    if kind == "text":
        text, finish = record["text"], record["finish"]
        if not (isinstance(text, str) and isinstance(finish, str)):
            raise TypeError("text and finish must be strings")
        return key, CachedText(text, finish)
    if kind == "loss":
        sum_nll, tokens = float(record["sum_nll"]), int(record["tokens"])
        if not math.isfinite(sum_nll) or tokens < 1:
            raise ValueError("loss out of range")
        return key, CachedLoss(sum_nll, tokens)
    raise ValueError(f"unknown kind {kind!r}")
