"""What is served: one consistent view of a routed model directory, and the next one.

``asr add``, ``remove`` and ``--extend`` write beside a running server. Its manifest is looked at
every second; a changed one is read, checked and hashed in a thread of its own, and taken over
between two steps of the worker. Requests that run keep the adapter that they began with, by the
hash of its file; those that wait are decided anew where their domain is gone.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from asr.errors import AsrError, ContractError, DirectoryError
from asr.model.directory import ModelDirectory
from asr.model.manifest import MANIFEST_FILE, Manifest
from asr.model.opening import open_directory
from asr.model.request import BASE
from asr.router import Router
from asr.serve.request import ServedModel

log = logging.getLogger("asr.serve")

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Target:
    """An adapter that a row may run with.

    Attributes:
        domain: its name, or ``base``.
        key: its identity: name and hash, so that two versions of a domain are two adapters.
        folder: where it lies; None for the base.
        sha256: hash of its tensor file; empty for the base.
        two_pass: whether it sits below the router layer.
    """

    domain: str
    key: str
    folder: Path | None
    sha256: str
    two_pass: bool = False


BASE_TARGET = Target(BASE, BASE, None, "")


@dataclass(frozen=True)
class Served:
    """One view of a directory.

    Attributes:
        manifest: the ledger.
        router: the router over the domains.
        targets: by domain, those that can be routed to, in training order.
        model: the same for people.
    """

    manifest: Manifest
    router: Router
    targets: dict[str, Target]
    model: ServedModel

    @classmethod
    def of(
        cls, directory: ModelDirectory, manifest: Manifest, router: Router, generation: int
    ) -> Served:
        """Gather what the manifest says of the domains that the router knows."""
        targets: dict[str, Target] = {}
        created: dict[str, int] = {}
        for name, entry in manifest.domains.items():
            if name not in router.names or entry.adapter is None:
                continue
            folder = directory.adapter(name, entry.adapter.version)
            key = f"{name}@{entry.adapter.sha256}"
            targets[name] = Target(name, key, folder, entry.adapter.sha256, entry.passes == "two")
            created[name] = _modified(folder)
        model = ServedModel(tuple(targets), manifest.base.name, created, generation)
        return cls(manifest, router, targets, model)


def _modified(folder: Path) -> int:
    try:
        return int(folder.stat().st_mtime)
    except OSError:
        return 0


class DirectoryWatch:
    """Notices that a directory has changed, and reads it.

    Args:
        directory: the routed model directory.
        served: its view of now.

    Not thread-safe: one thread looks.
    """

    def __init__(self, directory: ModelDirectory, served: Served) -> None:
        self.directory = directory
        self._served = served
        self._seen = self._stamp()
        self._looked = time.monotonic()

    def look(self) -> Served | None:
        """The new view, or None where nothing has changed or nothing usable stands there yet.

        A directory that is in the middle of a change, or damaged, is said in the log and looked at
        again; what is served stays.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return None
        try:
            served = self._read()
        except AsrError as error:
            log.warning("the model directory has changed and cannot be taken over yet: %s", error)
            return None
        if self._stamp() != stamp:
            return None  # changed again meanwhile: next time
        self._seen, self._served = stamp, served
        return served

    def _read(self) -> Served:
        opened = open_directory(self.directory.path)
        old, new = self._served.manifest, opened.manifest
        if new.base.fingerprint != old.base.fingerprint:
            raise DirectoryError("it is of another base now; restart the server")
        if new.contract_hash != old.contract_hash or new.two_pass != old.two_pass:
            raise ContractError("its feature contract is another one now; restart the server")
        generation = self._served.model.generation + 1
        return Served.of(opened.directory, new, opened.router.router, generation)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = (self.directory.path / MANIFEST_FILE).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
