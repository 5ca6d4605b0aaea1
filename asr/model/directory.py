"""The routed model directory: where everything in it lies, making one, opening one.

```
MODEL/
  manifest.json  chat_template.jinja  tokenizer*
  adapters/<domain>/     plain PEFT; later versions beside it as <domain>.v2, ...
  router/<domain>.safetensors  router/_background.safetensors  router/router.safetensors
  eval/<domain>.jsonl  eval/...
  checkpoints/<domain>/
  logs/<domain>/
```

Paths of a domain are made from checked names only, so no name can lead out of the directory.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
from pathlib import Path

from asr.atomic import STAGING_PREFIX, storage_errors
from asr.errors import DirectoryError
from asr.model.lock import LOCK_FILE, DirectoryLock
from asr.model.manifest import MANIFEST_FILE, DomainEntry, Manifest
from asr.model.names import check_domain_name

OWN_ENTRIES = (
    MANIFEST_FILE,
    LOCK_FILE,
    f"{STAGING_PREFIX}*",
    "adapters",
    "router",
    "eval",
    "checkpoints",
    "logs",
    "chat_template.jinja",
    "*.tiktoken",
    "*sentencepiece*.model",
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer*",
    "vocab.*",
)
"""Patterns of what asr puts at the top of a directory: all that ``--overwrite`` may delete."""

_MANIFEST_KEYS = frozenset({"schema_version", "base", "contract", "domains"})


class ModelDirectory:
    """Paths of one routed model directory. Making the object touches no file."""

    def __init__(self, path: Path | str) -> None:
        """``path``: the directory, existing or not."""
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"ModelDirectory({str(self.path)!r})"

    @property
    def manifest(self) -> Path:
        """``manifest.json``."""
        return self.path / MANIFEST_FILE

    @property
    def chat_template(self) -> Path:
        """``chat_template.jinja``: exactly what training rendered with."""
        return self.path / "chat_template.jinja"

    @property
    def tokenizer(self) -> Path:
        """Folder that the tokenizer's files lie in: the directory itself."""
        return self.path

    @property
    def adapters(self) -> Path:
        """Folder of the adapters."""
        return self.path / "adapters"

    @property
    def router_folder(self) -> Path:
        """Folder of the statistics and of the derived router."""
        return self.path / "router"

    @property
    def router(self) -> Path:
        """``router/router.safetensors``: weights, thresholds, feature map; derived."""
        return self.router_folder / "router.safetensors"

    @property
    def background(self) -> Path:
        """``router/_background.safetensors``: statistics of the prompts of no domain."""
        return self.router_folder / "_background.safetensors"

    @property
    def eval(self) -> Path:
        """Folder of kept prompts, predictions, figures."""
        return self.path / "eval"

    @property
    def matrix(self) -> Path:
        """``eval/matrix.json``."""
        return self.eval / "matrix.json"

    @property
    def answers(self) -> Path:
        """``eval/answers.jsonl``: generations and losses that need not be made again."""
        return self.eval / "answers.jsonl"

    @property
    def report(self) -> Path:
        """``eval/report.html``."""
        return self.eval / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints of unfinished domains."""
        return self.path / "checkpoints"

    def adapter(self, domain: str, version: int = 1) -> Path:
        """Folder of a domain's adapter; versions after the first lie beside it as ``name.v2``.

        Raises:
            ConfigError: ``domain`` is not a valid name.
            ValueError: ``version`` below 1.
        """
        if version < 1:
            raise ValueError(f"adapter versions count from 1, got {version}")
        # No domain name holds a '.', so a version's folder cannot be another domain's.
        suffix = "" if version == 1 else f".v{version}"
        return self.adapters / f"{check_domain_name(domain)}{suffix}"

    def adapter_weights(self, domain: str, version: int = 1) -> Path:
        """``adapters/<domain>/adapter_model.safetensors``; raises as :meth:`adapter`."""
        return self.adapter(domain, version) / "adapter_model.safetensors"

    def adapter_config(self, domain: str, version: int = 1) -> Path:
        """``adapters/<domain>/adapter_config.json``; raises as :meth:`adapter`."""
        return self.adapter(domain, version) / "adapter_config.json"

    def router_statistics(self, domain: str) -> Path:
        """``router/<domain>.safetensors``: statistics and calibration block.

        A domain called ``router`` would meet the derived router's file, so its statistics lie in
        ``router/router.domain.safetensors``.

        Raises:
            ConfigError: ``domain`` is not a valid name.
        """
        name = check_domain_name(domain)
        stem = "router.domain" if name == "router" else name
        return self.router_folder / f"{stem}.safetensors"

    def eval_prompts(self, domain: str) -> Path:
        """``eval/<domain>.jsonl``: kept prompts.

        A domain called ``answers`` would meet the cached answers, so its prompts lie in
        ``eval/answers.domain.jsonl``.

        Raises:
            ConfigError: ``domain`` is not a valid name.
        """
        name = check_domain_name(domain)
        stem = "answers.domain" if name == "answers" else name
        return self.eval / f"{stem}.jsonl"

    def checkpoint(self, domain: str) -> Path:
        """``checkpoints/<domain>/``: removed when the domain is done.

        Raises:
            ConfigError: ``domain`` is not a valid name.
        """
        return self.checkpoints / check_domain_name(domain)

    def logs(self, domain: str) -> Path:
        """``logs/<domain>/``: what a tracker of training wrote; absent without one.

        Raises:
            ConfigError: ``domain`` is not a valid name.
        """
        return self.path / "logs" / check_domain_name(domain)

    def coming(self, path: Path) -> Path:
        """Where a replacement of a file waits until the ledger names it: ``name.next.suffix``.

        No domain name holds a '.', so it cannot be another domain's file.
        """
        return path.with_name(f"{path.stem}.next{path.suffix}")

    def current(self, path: Path, manifest: Manifest) -> Path:
        """Where to read a replaceable file: its replacement once the ledger has switched to it.

        See :mod:`asr.model.switch`; at all other times it is ``path``.
        """
        coming = self.coming(path)
        return coming if manifest.switching is not None and coming.exists() else path

    def lock(self) -> DirectoryLock:
        """Return the (not yet taken) lock of this directory."""
        return DirectoryLock(self.path)

    @property
    def is_routed_model(self) -> bool:
        """Whether a manifest of asr's lies here (its contents are not checked further)."""
        return _is_manifest(self.manifest)

    @classmethod
    def create(
        cls, path: Path | str, overwrite: bool = False, lock: DirectoryLock | None = None
    ) -> ModelDirectory:
        """Make an empty directory, or take an empty one.

        ``overwrite`` deletes a routed model directory's own files first, manifest last, and only
        if nothing else lies in the folder. ``lock``: the directory's lock if the caller holds it;
        otherwise it is taken for the time of the call. A writer that locks afterwards calls this
        once more, with its lock: between the two another process may have made a model here.

        Raises:
            DirectoryError: a file of that name; the folder is not empty; with ``overwrite``, the
                folder is not a routed model directory or holds something that asr did not write.
                Nothing is deleted then.
            LockedError: another process is writing there.
            StorageError: the file system refused.
        """
        directory = cls(path)
        if directory.path.exists() and not directory.path.is_dir():
            raise DirectoryError(f"'{directory.path}' is a file: name a folder for the output")
        try:
            with storage_errors(directory.path):
                directory.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DirectoryError(
                f"'{directory.path}' lies below a file: name a folder for the output"
            ) from error
        if not directory._entries():
            return directory
        directory.require_replaceable(overwrite)
        if lock is not None and lock.held:
            directory._clear(overwrite)
        else:
            with directory.lock():
                directory._clear(overwrite)
        return directory

    @classmethod
    def open(cls, path: Path | str) -> ModelDirectory:
        """Return the routed model directory at ``path``; its manifest is not read yet.

        Raises:
            DirectoryError: missing, a file, or a folder that is something else; says what is there.
        """
        directory = cls(path)
        place = directory.path
        if not place.exists():
            raise DirectoryError(
                f"no folder '{place}'; give the folder that asr train wrote (it holds "
                f"{MANIFEST_FILE})"
            )
        if not place.is_dir():
            raise DirectoryError(
                f"'{place}' is a file; give the routed model directory, e.g. '{place.parent}'"
            )
        if directory.manifest.is_file():
            return directory  # a damaged manifest is reported by Manifest.load, with its reason
        raise DirectoryError(
            f"'{place}' is not a routed model directory: {_what_is_there(place)}; give the folder "
            f"that asr train wrote (it holds {MANIFEST_FILE})"
        )

    def verify(self, manifest: Manifest) -> list[str]:
        """Return one sentence per published file that is missing or is not the recorded one.

        Reads every adapter and statistics file once (sha256).

        Raises:
            OSError: a file exists and cannot be read.
        """
        problems: list[str] = []
        for name, entry in manifest.domains.items():
            for final, recorded in self._published(name, entry):
                path = self.current(final, manifest)
                if not path.is_file():
                    problems.append(
                        f"domain '{name}': {path.relative_to(self.path)} is missing; restore it "
                        f"from a copy, or remove the domain and train it again"
                    )
                elif (found := file_sha256(path)) != recorded:
                    problems.append(
                        f"domain '{name}': {path.relative_to(self.path)} was changed (sha256 "
                        f"{found[:12]}..., recorded {recorded[:12]}...); restore it from a copy, "
                        "or remove the domain and train it again"
                    )
        return problems

    def _published(self, name: str, entry: DomainEntry) -> list[tuple[Path, str]]:
        files: list[tuple[Path, str]] = []
        if entry.adapter is not None:
            version = entry.adapter.version
            files.append((self.adapter_weights(name, version), entry.adapter.sha256))
            if entry.adapter.config_sha256 is not None:
                files.append((self.adapter_config(name, version), entry.adapter.config_sha256))
        if entry.router is not None:
            files.append((self.router_statistics(name), entry.router.sha256))
        return files

    def _entries(self) -> list[Path]:
        """Everything in the folder but the lock file, which a waiting writer may have made."""
        try:
            return sorted(p for p in self.path.iterdir() if p.name != LOCK_FILE)
        except OSError as error:
            raise DirectoryError(f"cannot look into '{self.path}': {error.strerror}") from error

    def require_replaceable(self, overwrite: bool) -> None:
        """Check, without deleting anything, that a new model may be made here.

        Raises:
            DirectoryError: as :meth:`create`.
        """
        entries = self._entries()
        if not entries:
            return
        foreign = [p.name for p in entries if not _is_own(p.name)]
        if not self.is_routed_model:
            raise DirectoryError(
                f"output folder not empty: '{self.path}' is not a routed model directory "
                f"({_what_is_there(self.path)}), so --overwrite would not delete it either; choose "
                "another folder"
            )
        if not overwrite:
            raise DirectoryError(
                f"output folder not empty: '{self.path}' is a routed model directory; add --resume "
                "to continue it, or --overwrite to delete it and start again"
            )
        if foreign:
            raise DirectoryError(
                f"--overwrite refused, nothing deleted: '{self.path}' also holds what asr did not "
                f"write ({_listing(foreign)}); move it away, or choose another folder"
            )

    def _clear(self, overwrite: bool) -> None:
        self.require_replaceable(overwrite)  # again: now nobody else writes here
        entries = sorted(self._entries(), key=lambda p: p.name == MANIFEST_FILE)
        with storage_errors(self.path):
            # The manifest goes last: until then a killed --overwrite can be repeated.
            for entry in entries:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes, as ``sha256sum`` prints it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_own(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OWN_ENTRIES)


def _is_manifest(path: Path) -> bool:
    """Other programs write a manifest.json too: only asr's keys make it ours."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and tree.keys() >= _MANIFEST_KEYS


def _what_is_there(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return "it is empty"
    if "adapter_config.json" in names:
        return "it is a single PEFT adapter"
    if "config.json" in names:
        return "it looks like a base model"
    return f"it holds {_listing(names)}"


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
