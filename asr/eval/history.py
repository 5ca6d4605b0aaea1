"""The matrices of a routed model: which sets, which routers, and where they are kept.

Row k is what the model could do right after its k-th domain. Routers of the past need not be kept:
the router after k domains is the ridge regression over the statistics of the first k.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from asr.atomic import write_text
from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.errors import DirectoryError
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.matrix import KINDS, EvalMatrix
from asr.model.background import read_background
from asr.model.directory import ModelDirectory
from asr.model.kept_prompts import read_kept
from asr.model.manifest import Manifest
from asr.model.routing import fit_router, read_domains
from asr.router import RouterSettings

DEFAULT_SCORER = "exact"


def extend_matrices(
    evaluator: Evaluator,
    routing: RouterSettings,
    max_examples: int | None,
    max_new_tokens: int,
) -> dict[str, EvalMatrix]:
    """Bring the stored matrices on the kept dev cuts up to date, and store them.

    Rows that stand already are not made again, unless something that they were made from has
    changed: the sets' prompts, answers or settings, an adapter, the router's settings.

    Args:
        evaluator: of the routed model.
        routing: the router's settings.
        max_examples: most examples per domain; None for all.
        max_new_tokens: longest answer, where a domain says nothing else.

    Returns:
        The matrix of each kind.

    Raises:
        As :meth:`asr.eval.evaluate.Evaluator.extend`.
    """
    directory, manifest = evaluator.model.directory, evaluator.model.manifest
    sets = [
        eval_set(
            manifest, name, read_kept(directory.eval_prompts(name))[:max_examples], max_new_tokens
        )
        for name in manifest.routed
    ]
    basis = _basis(manifest, sets, routing)
    matrices = {}
    for kind in KINDS:
        path = matrix_path(directory, kind)
        matrix = _stored(path, sets, basis) or EvalMatrix(kind)
        complete_matrix(evaluator, matrix, sets, routing)
        write_text(path, matrix.to_json())
        write_text(_basis_path(path), json.dumps(basis) + "\n")
        matrices[kind] = matrix
    return matrices


def complete_matrix(
    evaluator: Evaluator, matrix: EvalMatrix, sets: Sequence[EvalSet], routing: RouterSettings
) -> None:
    """Append the rows of all domains that ``matrix`` lacks, each under the router of its time."""
    model = evaluator.model
    names = [evaluated.domain for evaluated in sets]
    domains = read_domains(model.directory, names, model.manifest.contract)
    background = read_background(model.directory, model.manifest)
    width = model.manifest.base.hidden_size
    for count in range(len(matrix.domains) + 1, len(names) + 1):
        router = fit_router(
            [*domains[:count], *background], routing, model.manifest.contract, width
        )
        evaluator.extend(matrix, sets[:count], router)


def eval_set(
    manifest: Manifest, name: str, examples: Sequence[Example], max_new_tokens: int
) -> EvalSet:
    """What a domain is scored on, with what the manifest knows of it."""
    entry = manifest.domains[name]
    return EvalSet(
        domain=name,
        examples=examples,
        common=recorded_common_part(manifest, name),
        scorer=entry.scorer or DEFAULT_SCORER,
        max_new_tokens=entry.max_new_tokens or max_new_tokens,
    )


def recorded_common_part(manifest: Manifest, name: str) -> CommonPart:
    """What the domain's training prompts share, as recorded."""
    entry = manifest.domains[name].common_part
    if entry is None:
        return CommonPart()
    return CommonPart(entry.prefix, entry.suffix, entry.system or "")


def matrix_path(directory: ModelDirectory, kind: str) -> Path:
    """``eval/matrix.json`` for templated prompts, ``eval/matrix.<kind>.json`` for others."""
    path = directory.matrix
    return path if kind == "templated" else path.with_name(f"matrix.{kind}.json")


def load_matrices(directory: ModelDirectory) -> Mapping[str, EvalMatrix]:
    """Read the stored matrices of every kind that there is.

    Raises:
        DirectoryError: a file is damaged.
    """
    found = {}
    for kind in KINDS:
        path = matrix_path(directory, kind)
        if path.is_file():
            found[kind] = EvalMatrix.from_json(path.read_text(encoding="utf-8"), str(path))
    return found


def _basis_path(path: Path) -> Path:
    """``eval/matrix.basis.json``: what the rows of ``eval/matrix.json`` were made from."""
    return path.with_name(f"{path.stem}.basis.json")


def _basis(manifest: Manifest, sets: Sequence[EvalSet], routing: RouterSettings) -> list[str]:
    """One sha256 per domain over all that its row depends on and earlier entries do not hold."""
    digests = []
    for evaluated in sets:
        entry = manifest.domains[evaluated.domain]
        parts = {
            "domain": evaluated.domain,
            "examples": [[e.messages, e.meta] for e in evaluated.examples],
            "common": evaluated.common.to_dict(),
            "scorer": evaluated.scorer,
            "max_new_tokens": evaluated.max_new_tokens,
            "adapter": None if entry.adapter is None else entry.adapter.sha256,
            "statistics": None if entry.router is None else entry.router.sha256,
            "background": manifest.background.sha256 if manifest.background else None,
            "routing": routing.to_dict(),
        }
        canonical = json.dumps(parts, sort_keys=True, default=str)
        digests.append(hashlib.sha256(canonical.encode()).hexdigest())
    return digests


def _stored(path: Path, sets: Sequence[EvalSet], basis: Sequence[str]) -> EvalMatrix | None:
    """The stored matrix if it begins the history of these sets; a damaged one is made again."""
    try:
        matrix = EvalMatrix.from_json(path.read_text(encoding="utf-8"), str(path))
        recorded = json.loads(_basis_path(path).read_text(encoding="utf-8"))
    except (DirectoryError, OSError, ValueError):
        return None  # not there, or damaged: the answers are cached, so it is cheap to make
    count = len(matrix.domains)
    begins = matrix.domains == [evaluated.domain for evaluated in sets[:count]]
    return matrix if begins and recorded == list(basis[:count]) else None
