"""Take a domain out of a routed model, with everything that was made from its data.

The router is solved again over the statistics of the domains that stay, in name order: bit for bit
the router of a model that never saw the domain (on one machine, with one number of threads).
Nothing is subtracted, no base is loaded, no old data is read.

Order of the writes, so that a kill in between leaves a directory that works, and the same command
finishes the work:

1. the router without the domain: the model no longer routes to it;
2. the ledger, with the domain as one that has not begun, and without its settings;
3. the files of the domain, its statistics last: what a model that lacks the domain in its ledger
   still holds of it can be told by them;
4. the ledger without the domain.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.atomic import storage_errors, sweep_staging
from asr.errors import ConfigError, DirectoryError, RouterError, unknown
from asr.eval.cache import forget_domain
from asr.eval.matrix import EvalMatrix
from asr.model.background import read_background
from asr.model.canaries import TENSOR
from asr.model.directory import ModelDirectory
from asr.model.manifest import MANIFEST_FILE, DomainEntry, Manifest
from asr.model.names import check_domain_name
from asr.model.routing import fit_router, read_domains, store_router
from asr.model.switch import complete_switch
from asr.router import Router, RouterSettings, load_router

_FIGURES = ("matrix.png", "matrix.*.png", "report.html")
_BASES = ("matrix.basis.json", "matrix.*.basis.json")
_MATRICES = ("matrix.json", "matrix.*.json")


def remove_domain(path: Path | str, name: str) -> list[str]:
    """Remove a domain from the routed model directory at ``path``.

    Deleted are its adapter (all versions), statistics and calibration block, kept prompts (those of
    its extensions too, finished or not), checkpoints, its entry and its settings in the manifest,
    the answers of its adapter and those to its prompts in ``eval/answers.jsonl`` (with them those
    that do not say whose they are), and, of ``eval`` and ``eval/test``, all figures and the
    matrices that hold the domain: what comes after it in them was measured with routers that knew
    it. ``asr eval`` and the next training make the matrices on the kept prompts again, from the
    answers that stay. Files that were written elsewhere (``asr eval --out``, ``asr generate
    --out``) are not searched for.

    Args:
        path: the model directory.
        name: the domain; finished or not. One that the manifest does not hold any more is accepted
            where files of it are left.

    Returns:
        What was deleted, as paths from ``path``, some with a remark; on a repetition after a kill,
        what was left to delete.

    Raises:
        DirectoryError: not a routed model directory, no such domain, the only one, or one that
            another domain's adapter started from.
        LockedError: another process is writing there.
        RouterError, ContractError: the router, or the statistics of a domain that stays, are
            missing or damaged. Nothing is deleted then.
        StorageError: the file system refused; the same command goes on from there.
    """
    directory = ModelDirectory.open(path)
    with directory.lock():
        manifest = Manifest.load(directory.path)
        _require_removable(directory, manifest, name)
        sweep_staging(directory.path)
        complete_switch(directory, manifest)
        deleted: list[str] = []
        if name in manifest.domains:
            deleted += _publish_router(directory, manifest, name)
            _reset_entry(manifest, name)
            manifest.save(directory.path)
        deleted += _purge(directory, name)
        if name in manifest.domains:
            del manifest.domains[name]
            manifest.save(directory.path)
            deleted.append(f"{MANIFEST_FILE}: its entry and settings")
        return deleted


def _require_removable(directory: ModelDirectory, manifest: Manifest, name: str) -> None:
    if name not in manifest.domains:
        if not _leftovers(directory, name):
            raise DirectoryError(unknown("domain", name, manifest.domains))
    elif len(manifest.domains) == 1:
        raise DirectoryError(
            f"'{name}' is the only domain of '{directory.path}', and a routed model needs one; "
            f"nothing was removed: add another one first, or delete the folder"
        )
    children = _started_from(manifest, name)
    if children:
        raise DirectoryError(
            f"{', '.join(children)} started from '{name}' (init_from), so what was learned from "
            f"its data is in there too; nothing was removed: remove {children[0]} first, and add "
            "it again with adapter.init_from=none afterwards"
        )


def _started_from(manifest: Manifest, name: str) -> list[str]:
    """Domains whose adapter began as a copy of the domain's, or will."""
    domains = manifest.config.get("domains")
    configured: dict[str, Any] = domains if isinstance(domains, dict) else {}
    return [
        other
        for other, entry in manifest.domains.items()
        if entry.parent == name
        or configured.get(other, {}).get("adapter", {}).get("init_from") == name
    ]


def _leftovers(directory: ModelDirectory, name: str) -> list[Path]:
    try:
        check_domain_name(name)
    except ConfigError:  # no file is ever called so
        return []
    return [path for path in _own_files(directory, name) if _exists(path)]


# -- the router --------------------------------------------------------------------------------


def _publish_router(directory: ModelDirectory, manifest: Manifest, name: str) -> list[str]:
    """Write the router of the domains that stay, and bring its settings in line."""
    settings = _settings_without(RouterSettings.from_dict(manifest.router), name)
    kept = [other for other in manifest.routed if other != name]
    if settings.to_dict() != RouterSettings.from_dict(manifest.router).to_dict():
        manifest.router = settings.to_dict()
    if not kept:  # what stays is not trained yet: its training makes the router
        return _delete(directory, [directory.router])
    router, canaries = _solve(directory, manifest, kept, settings)
    store_router(directory, router, manifest.contract, canaries)
    return []


def _solve(
    directory: ModelDirectory, manifest: Manifest, kept: list[str], settings: RouterSettings
) -> tuple[Router, NDArray[np.float32]]:
    # The canaries' features are the base's, not any domain's: they are carried over.
    canaries = load_router(directory.router, manifest.contract.hash).extra_tensors.get(TENSOR)
    if canaries is None:
        raise RouterError(
            f"{directory.router} holds no canary features; run asr train CONFIG --out "
            f"{directory.path} --resume to derive it again, and then remove the domain"
        )
    domains = read_domains(directory, kept, manifest.contract)
    domains += read_background(directory, manifest)
    router = fit_router(domains, settings, manifest.contract, manifest.base.hidden_size)
    return router, canaries


def _settings_without(settings: RouterSettings, name: str) -> RouterSettings:
    if name not in (settings.domain_weights or {}):
        return settings
    weights = {key: value for key, value in (settings.domain_weights or {}).items() if key != name}
    return replace(settings, domain_weights=weights or None)


# -- the ledger --------------------------------------------------------------------------------


def _reset_entry(manifest: Manifest, name: str) -> None:
    """Record the domain as not begun, so that the ledger promises no file that is being deleted."""
    manifest.domains[name] = DomainEntry(order=manifest.domains[name].order)
    domains = manifest.config.get("domains")
    if isinstance(domains, dict):
        domains.pop(name, None)


# -- the files ---------------------------------------------------------------------------------


def _purge(directory: ModelDirectory, name: str) -> list[str]:
    deleted = []
    answers = directory.answers
    dropped, stayed = forget_domain(answers, name)
    if dropped:
        what = f"{dropped} of {dropped + stayed} answers"
        deleted.append(f"{answers.relative_to(directory.path)}: {what}")
    for folder in (directory.eval, directory.eval / "test"):
        deleted += _delete(directory, _stale_matrices(folder, name))
    with storage_errors(directory.path):
        if (directory.eval / "test").is_dir() and not any((directory.eval / "test").iterdir()):
            (directory.eval / "test").rmdir()
    return deleted + _delete(directory, _own_files(directory, name))


def _own_files(directory: ModelDirectory, name: str) -> list[Path]:
    """Everything that belongs to the domain alone, in the order of deletion."""
    versions = re.compile(rf"{re.escape(name)}(\.v\d+)?")
    folder = directory.adapters
    adapters = sorted(folder.iterdir()) if folder.is_dir() else []
    prompts, statistics = directory.eval_prompts(name), directory.router_statistics(name)
    return [
        # an extension that was stopped before its switch leaves these, and the last made of them
        *(directory.coming(path) for path in (prompts, statistics, directory.router)),
        prompts,
        directory.checkpoint(name),
        directory.logs(name),
        *(path for path in adapters if versions.fullmatch(path.name)),
        statistics,
    ]


def _stale_matrices(folder: Path, name: str) -> list[Path]:
    """The matrices in ``folder`` that hold the domain, after what was made with them; all figures.

    A figure does not say which domains it shows, may be older than the matrix, and is soon drawn
    again.
    """
    figures, bases, matrices = (
        sorted({path for pattern in patterns for path in folder.glob(pattern)})
        for patterns in (_FIGURES, _BASES, _MATRICES)
    )
    holding = [path for path in matrices if path not in bases and _holds(path, name)]
    return [*figures, *bases, *holding] if holding else figures


def _holds(path: Path, name: str) -> bool:
    try:
        return name in EvalMatrix.from_json(path.read_text(encoding="utf-8"), str(path)).domains
    except (DirectoryError, UnicodeDecodeError):
        return True  # damaged: it may


def _delete(directory: ModelDirectory, paths: Iterable[Path]) -> list[str]:
    """Delete files and folders that are there; links are removed, not followed."""
    deleted = []
    for path in paths:
        if not _exists(path):
            continue
        with storage_errors(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        deleted.append(str(path.relative_to(directory.path)))
    return deleted


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
