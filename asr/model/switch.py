"""Replace several files of a routed model directory at once.

A new version of a domain changes its statistics, its kept prompts and the router together, and the
ledger names the adapter that goes with them. Replacements are first written beside the files, under
``name.next.suffix``. Saving the ledger with :attr:`Manifest.switching` set is the switch: before it
all readers see the old files, after it the new ones (:meth:`ModelDirectory.current`). Then they are
copied into place; the next writer does so where a kill came in between.
"""

from __future__ import annotations

from pathlib import Path

from asr.atomic import storage_errors, write_bytes
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest


def complete_switch(directory: ModelDirectory, manifest: Manifest) -> None:
    """Move what the ledger has switched to into place; remove what it has not.

    Call it as the holder of the directory's lock, before anything is read for writing.

    Raises:
        StorageError: the file system refused; call it again.
    """
    name = manifest.switching
    if name is not None:
        for path in replaceable(directory, name):
            coming = directory.coming(path)
            if coming.is_file():
                # A copy and no rename: a reader that has read this ledger still finds it.
                write_bytes(path, coming.read_bytes())
        manifest.switching = None
        manifest.save(directory.path)
    with storage_errors(directory.path):
        for domain in manifest.domains:
            for path in replaceable(directory, domain):
                directory.coming(path).unlink(missing_ok=True)


def replaceable(directory: ModelDirectory, name: str) -> list[Path]:
    """The files that a new version of a domain replaces; kept prompts may not be there."""
    return [
        directory.router_statistics(name),
        directory.eval_prompts(name),
        directory.router,
    ]
