"""Files of the router: one per domain (statistics, calibration block), one for the fitted router.

safetensors, with one metadata entry ``"asr"`` that holds canonical JSON (several entries would be
written in random order). Equal content gives equal bytes. The JSON carries the schema version, the
kind of file, the hash of the feature contract and a sha256 over itself and all tensors, because
safetensors notices a shortened file but not a changed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from asr.atomic import write_bytes
from asr.errors import ContractError, RouterError
from asr.router.calibration import CalibrationBlock
from asr.router.columns import Columns
from asr.router.features import FeatureMap
from asr.router.known import EVIDENCE_ALONE, KnownScore
from asr.router.report import RouterReport
from asr.router.router import Router
from asr.router.scoring import Scorer, read_geometry
from asr.router.settings import RouterSettings
from asr.router.statistics import DomainStatistics

_DOMAIN, _ROUTER = "domain", "router"

#: Version of the layout of each kind of file. A file with a larger one is refused. Routers of
#: version 1 have the regression alone, without Gaussians and neighbours.
SCHEMA_VERSIONS = {_DOMAIN: 1, _ROUTER: 2}

_AGAIN = {
    _DOMAIN: "take the domain out with asr remove MODEL NAME and add it again",
    _ROUTER: "run asr train CONFIG --out MODEL --resume to derive it again",
}
_EXTRA = "extra/"


@dataclass(frozen=True)
class StoredDomain:
    """What a domain's file holds. ``calibration`` is None where none was saved."""

    name: str
    statistics: DomainStatistics
    calibration: CalibrationBlock | None
    contract_hash: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredRouter:
    """What a router's file holds. ``extra_tensors`` is what the caller stored beside it."""

    router: Router
    contract_hash: str
    extra_tensors: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def save_domain(
    path: Path,
    name: str,
    statistics: DomainStatistics,
    calibration: CalibrationBlock | None,
    contract_hash: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a domain's statistics and calibration block.

    Args:
        path: the file; its folder exists.
        name: the domain.
        statistics: its statistics.
        calibration: its held-out prompts, or None.
        contract_hash: hash of the feature contract the features were made under.
        metadata: anything JSON can hold, returned by :func:`load_domain`.

    Raises:
        StorageError: the file system refuses (full, read-only, no permission).
        TypeError, ValueError: ``metadata`` that strict JSON cannot hold.
    """
    tensors, described = statistics.to_tensors()
    stored = {f"statistics/{key}": tensor for key, tensor in tensors.items()}
    views: list[str] | None = None
    if calibration is not None:
        stored["calibration/pooled"] = calibration.pooled
        views = list(calibration.view_names)
    header = {
        "name": name,
        "statistics": described,
        "calibration_views": views,
        "metadata": dict(metadata or {}),
    }
    write_bytes(path, _encode(_DOMAIN, contract_hash, header, stored))


def load_domain(path: Path, contract_hash: str | None = None) -> StoredDomain:
    """Read a domain's file.

    Args:
        path: the file.
        contract_hash: the contract it must have been made under; None accepts any.

    Raises:
        RouterError: the file is missing, shortened, changed, of another kind or of a newer schema;
            the message names it and what to do.
        ContractError: it was made under another feature contract.
    """
    header, tensors = _decode(path, _DOMAIN, contract_hash)
    try:
        views = header["calibration_views"]
        calibration = None
        if views is not None:
            calibration = CalibrationBlock(tensors["calibration/pooled"], views)
        return StoredDomain(
            name=header["name"],
            statistics=DomainStatistics.from_tensors(
                _with_prefix(tensors, "statistics/"), header["statistics"]
            ),
            calibration=calibration,
            contract_hash=header["contract"],
            metadata=header["metadata"],
        )
    except (KeyError, TypeError, ValueError, RouterError) as error:
        raise _unreadable(path, _DOMAIN, error) from error


def save_router(
    path: Path,
    router: Router,
    contract_hash: str,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a fitted router: weights, feature map, settings, thresholds and report.

    Args:
        path: the file; its folder exists.
        router: what to write.
        contract_hash: hash of the feature contract.
        extra_tensors: stored beside it as they are (such as canaries).
        metadata: anything JSON can hold.

    Raises:
        StorageError: the file system refuses (full, read-only, no permission).
        TypeError, ValueError: ``metadata`` that strict JSON cannot hold.
    """
    stored: dict[str, np.ndarray] = {"weights": router.weights, **router.scorer.tensors()}
    stored |= {f"features/{key}": value for key, value in router.feature_map.to_tensors().items()}
    stored |= {f"{_EXTRA}{key}": value for key, value in (extra_tensors or {}).items()}
    header = {
        "names": list(router.columns.names),
        "owners": list(router.columns.owners),
        "hidden_size": router.feature_map.hidden_size,
        "expansion_hash": router.feature_map.expansion_hash,
        "expansion_seed": router.feature_map.seed,
        "settings": router.settings.to_dict(),
        "report": router.report.to_dict(),
        "known": router.known.to_dict(),
        "metadata": dict(metadata or {}),
    }
    write_bytes(path, _encode(_ROUTER, contract_hash, header, stored))


def load_router(path: Path, contract_hash: str | None = None) -> StoredRouter:
    """Read a router's file.

    Args:
        path: the file.
        contract_hash: the contract it must have been made under; None accepts any.

    Raises:
        RouterError, ContractError: as :func:`load_domain`.
    """
    header, tensors = _decode(path, _ROUTER, contract_hash)
    try:
        columns = Columns(tuple(header["names"]), tuple(header["owners"]))
        feature_map = FeatureMap.from_tensors(
            _with_prefix(tensors, "features/"), header["hidden_size"], header["expansion_seed"]
        )
        weights = np.ascontiguousarray(tensors["weights"], dtype=np.float64)
        if weights.shape != (feature_map.dimension, len(columns.owners)):
            raise RouterError(f"weights have shape {weights.shape}")
        if feature_map.expansion_hash != header["expansion_hash"]:
            raise RouterError("the expansion tensor is not the one that was saved")
        known = KnownScore.from_dict(header["known"]) if "known" in header else EVIDENCE_ALONE
        settings = RouterSettings.from_dict({"terms": EVIDENCE_ALONE.scales, **header["settings"]})
        gaussians, neighbours = read_geometry(tensors, settings.neighbours)
        router = Router(
            scorer=Scorer(feature_map, columns, weights, gaussians, neighbours),
            known=known,
            settings=settings,
            report=RouterReport.from_dict(header["report"]),
        )
        return StoredRouter(
            router, header["contract"], _with_prefix(tensors, _EXTRA), header["metadata"]
        )
    except (KeyError, TypeError, ValueError, RouterError) as error:
        raise _unreadable(path, _ROUTER, error) from error


def _encode(
    kind: str, contract_hash: str, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> bytes:
    stored = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    own = {"schema": SCHEMA_VERSIONS[kind], "kind": kind, "contract": contract_hash}
    # as it will read back (keys become text, tuples lists), so that the digest is the same then
    described = json.loads(json.dumps({**header, **own}, allow_nan=False))
    described["sha256"] = _digest(described, stored)
    encoded: bytes = save(stored, metadata={"asr": _canonical(described)})
    return encoded


def _decode(
    path: Path, kind: str, contract_hash: str | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read header and tensors after every check that does not depend on the kind of file."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})["asr"])
            newest = SCHEMA_VERSIONS[kind]
            if header["schema"] > max(newest, SCHEMA_VERSIONS.get(header["kind"], 0)):
                raise RouterError(
                    f"{path} was written by a newer version (schema {header['schema']}; this one"
                    f" reads up to {newest}); type: pip install -U"
                    " analytic-subspace-routing"
                )
            if header["kind"] != kind:
                raise RouterError(f"{path} is a {header['kind']} file; a {kind} file is needed")
            if contract_hash is not None and header["contract"] != contract_hash:
                raise ContractError(
                    f"{path} was made under feature contract {header['contract'][:12]}, this model"
                    f" uses {contract_hash[:12]}; {_AGAIN[kind]}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RouterError(f"{path} does not exist; {_AGAIN[kind]}") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, kind, error) from error
    expected = header.pop("sha256", None)
    if _digest(header, tensors) != expected:
        raise _unreadable(path, kind, "its content does not match its checksum")
    return header, tensors


def _unreadable(path: Path, kind: str, why: object) -> RouterError:
    reason = f"it lacks {why}" if isinstance(why, KeyError) else " ".join(str(why).split())
    return RouterError(f"{path} is damaged ({reason}); restore it from a copy, or {_AGAIN[kind]}")


def _with_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    start = len(prefix)
    return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _canonical(header: Mapping[str, Any]) -> str:
    """Strict JSON with sorted keys: equal headers give equal text."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over the header, then name, dtype, shape and bytes of each tensor in name order."""
    digest = hashlib.sha256(_canonical(header).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        digest.update(tensor.data if tensor.size else b"")
    return digest.hexdigest()
