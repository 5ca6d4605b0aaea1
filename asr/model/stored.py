"""Files of the router under a model's feature contract: what they carry, and reading them back.

:mod:`asr.router` knows a contract by its hash alone. A file carries the whole contract besides, so
that one made under another is refused by the name of the field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from asr.errors import ContractError
from asr.model.contract import FeatureContract
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.manifest import Manifest
from asr.router import StoredDomain, StoredRouter, load_domain, load_router

_Stored = TypeVar("_Stored", StoredDomain, StoredRouter)


def contract_metadata(contract: FeatureContract) -> dict[str, Any]:
    """What a file carries of the contract that it was made under, for its metadata."""
    return {"contract": contract.model_dump(mode="json")}


def read_domain(path: Path, contract: FeatureContract) -> StoredDomain:
    """Read a domain's file.

    Raises:
        RouterError: it is missing or damaged.
        ContractError: it was made under another feature contract; names the field.
    """
    return _read(load_domain, path, contract)


def read_router(path: Path, contract: FeatureContract) -> StoredRouter:
    """Read the derived router's file; raises as :func:`read_domain`."""
    return _read(load_router, path, contract)


def background_problem(directory: ModelDirectory, manifest: Manifest) -> str | None:
    """Return what is wrong with the background class's file, or None; reads it once (sha256).

    No request needs the file: only what solves the router again does.

    Raises:
        OSError: the file exists and cannot be read.
    """
    recorded, path = manifest.background, directory.background
    if recorded is None:
        return None
    again = f"run asr train CONFIG --out {directory.path} --resume to make it again"
    if not path.is_file():
        return f"{path} is missing; {again}"
    if (found := file_sha256(path)) == recorded.sha256:
        return None
    return (
        f"{path} was changed (sha256 {found[:12]}..., recorded {recorded.sha256[:12]}...); {again}"
    )


def unrouted(manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Return one sentence per finished domain that the derived router does not know.

    A removal that was stopped leaves one, and so does an older file put in place of the router's.

    Args:
        manifest: the ledger.
        names: the domains that the router knows.
    """
    return [
        f"the router does not know '{name}' and sends nothing there, though it is finished: finish"
        f" asr remove MODEL {name} if that was stopped, or run asr train CONFIG --out MODEL"
        " --resume to derive the router again"
        for name in manifest.finished
        if name not in names
    ]


def _read(
    load: Callable[[Path, str | None], _Stored], path: Path, contract: FeatureContract
) -> _Stored:
    try:
        return load(path, contract.hash)
    except ContractError as error:
        made = load(path, None).metadata.get("contract")
        try:
            contract.check(FeatureContract.model_validate_json(json.dumps(made)))
        except ValidationError:
            pass  # a file that does not carry it: the hashes are all there is
        except ContractError as named:
            raise ContractError(f"{path}: {named}") from None
        raise error
