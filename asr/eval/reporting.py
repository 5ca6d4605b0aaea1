"""The reported evaluation: test files that training never read, the whole T x T matrix.

While training, models are watched on the dev cuts; what is reported comes from here. Test files are
read by nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.atomic import write_bytes, write_text
from asr.data.hub import is_there
from asr.data.load import load_examples
from asr.errors import DataError, DirectoryError, unknown
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator, Progress, check_set
from asr.eval.history import complete_matrix, eval_set
from asr.eval.matrix import EvalMatrix
from asr.model.manifest import Manifest
from asr.model.routed_model import Generation, Prompt, RoutedModel
from asr.router import RouterSettings

LONGEST_ANSWER = 256
"""Tokens, where neither the domain nor the config says otherwise."""


class MeasuredModel(RoutedModel):
    """A routed model that counts what it generates.

    Attributes:
        answers: answers generated so far.
        new_tokens: tokens in them.
        seconds: time spent generating them, prefill included.
    """

    answers: int = 0
    new_tokens: int = 0
    seconds: float = 0.0

    def generate(self, prompts: Sequence[Prompt], **settings: Any) -> list[Generation]:
        """Answer as :meth:`RoutedModel.generate` does, and count."""
        began = time.perf_counter()
        answers = super().generate(prompts, **settings)
        self.seconds += time.perf_counter() - began
        self.answers += len(answers)
        self.new_tokens += sum(answer.new_tokens for answer in answers)
        return answers


@dataclass(frozen=True)
class EvalRun:
    """An evaluation and what it cost.

    Attributes:
        matrices: the complete matrix of each kind.
        generated: answers generated; the rest came from the cache.
        likelihoods: likelihoods computed, for scorers that generate nothing.
        new_tokens: tokens in the answers.
        generating: seconds spent on them.
        seconds: wall time of the whole.
    """

    matrices: Mapping[str, EvalMatrix]
    generated: int
    likelihoods: int
    new_tokens: int
    generating: float
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens generated per second; None where no answer was generated."""
        return self.new_tokens / self.generating if self.generating > 0 else None


def files_to_score(manifest: Manifest, given: Mapping[str, Path]) -> dict[str, Path]:
    """Return the test file of every domain that the router knows, in training order.

    Args:
        manifest: of the model; it records the files that the config named.
        given: files named now; they come first.

    Raises:
        DirectoryError: ``given`` names a domain that the model does not have.
        DataError: domains have no test file, or it does not exist; names them. A matrix over some
            of the domains would be that of another router, so all of them need one.
    """
    for name in given:
        if name not in manifest.routed:
            raise DirectoryError(unknown("domain", name, manifest.routed))
    files: dict[str, Path] = {}
    missing: list[str] = []
    for name in manifest.routed:
        recorded = manifest.domains[name].test
        if name in given:
            files[name] = given[name]
        elif recorded is None or not is_there(recorded):
            gone = "" if recorded is None else f" ({recorded} does not exist any more)"
            missing.append(f"'{name}'{gone}")
        else:
            files[name] = Path(recorded)
    if missing:
        options = " ".join(f"--data {name}=FILE" for name in manifest.routed if name not in files)
        raise DataError(f"no test file for {', '.join(missing)}; give {options}")
    return files


def load_sets(
    manifest: Manifest, files: Mapping[str, Path], max_examples: int | None = None
) -> list[EvalSet]:
    """Read the test files.

    Args:
        manifest: of the model.
        files: one per domain, in training order.
        max_examples: most examples per domain, drawn by the model's seed; None for all.

    Raises:
        DataError: a file, or rows of it, cannot be used, or lack what the scorer needs.
    """
    sets = []
    for name, path in files.items():
        loaded = load_examples(
            path,
            name=name,
            fmt=_recorded_format(manifest, name),
            limit=max_examples,
            minimum=1,
            seed=manifest.seed,
        )
        sets.append(eval_set(manifest, name, loaded.examples, LONGEST_ANSWER))
        check_set(sets[-1])
    return sets


def evaluate_sets(
    model: MeasuredModel,
    sets: Sequence[EvalSet],
    kinds: Sequence[str],
    cache: EvalCache,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> EvalRun:
    """Score base, routed and oracle after every domain, on every set.

    Args:
        model: the routed model.
        sets: one per domain of its router, in training order.
        kinds: ``templated``, ``bare``.
        cache: where answers are kept.
        batch_size: prompts generated together.
        progress: told about generation.

    Raises:
        As :meth:`asr.eval.evaluate.Evaluator.extend`.
    """
    began, before = time.perf_counter(), len(cache)
    evaluator = Evaluator(model, cache, batch_size, progress)
    routing = RouterSettings.from_dict(model.manifest.router)
    matrices = {}
    for kind in kinds:
        matrices[kind] = EvalMatrix(kind)
        complete_matrix(evaluator, matrices[kind], sets, routing)
    return EvalRun(
        matrices=matrices,
        generated=model.answers,
        likelihoods=len(cache) - before - model.answers,
        new_tokens=model.new_tokens,
        generating=model.seconds,
        seconds=time.perf_counter() - began,
    )


def write_matrices(matrices: Mapping[str, EvalMatrix], folder: Path) -> list[Path]:
    """Write ``matrix.json`` (templated) and ``matrix.<kind>.json``; return the files.

    Raises:
        StorageError: the file system refused.
    """
    return [_write(folder, kind, ".json", matrix.to_json()) for kind, matrix in matrices.items()]


def draw_matrices(matrices: Mapping[str, EvalMatrix], folder: Path) -> list[Path]:
    """Draw ``matrix.png`` (templated) and ``matrix.<kind>.png``; return the files.

    Raises:
        StorageError: the file system refused.
    """
    from asr.eval.figures import matrix_png

    return [_write(folder, kind, ".png", matrix_png(matrix)) for kind, matrix in matrices.items()]


def _write(folder: Path, kind: str, suffix: str, content: str | bytes) -> Path:
    path = folder / ("matrix" + ("" if kind == "templated" else f".{kind}") + suffix)
    if isinstance(content, str):
        write_text(path, content)
    else:
        write_bytes(path, content)
    return path


def _recorded_format(manifest: Manifest, name: str) -> str | None:
    """The record format that the config set for the domain; None: detected."""
    domains = manifest.config.get("domains")
    section = domains.get(name) if isinstance(domains, dict) else None
    found = section.get("format") if isinstance(section, dict) else None
    return found if isinstance(found, str) else None
