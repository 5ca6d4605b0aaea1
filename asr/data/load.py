"""A domain's data from its file: read, checked, limited, hashed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asr.data.formats import Example, to_examples
from asr.data.records import read_records
from asr.errors import DataError

MINIMUM_PROMPTS = 4


@dataclass(frozen=True)
class LoadedData:
    """Examples in file order, their hash, and the file they came from."""

    examples: tuple[Example, ...]
    sha256: str
    path: Path


def load_examples(
    path: Path | str,
    *,
    name: str,
    fmt: str | None = None,
    limit: int | None = None,
    minimum: int = MINIMUM_PROMPTS,
    seed: int = 0,
) -> LoadedData:
    """Load the examples of one domain.

    Args:
        path: a JSON-lines file.
        name: the domain, for messages.
        fmt: ``messages`` or ``prompt-completion``; None to detect it.
        limit: keep the first ``limit`` of a shuffle of the rows by ``seed``. A larger limit keeps
            all that a smaller one does; what is kept stays in file order.
        minimum: how many different prompts there must be.
        seed: of that shuffle.

    Raises:
        DataError: the file or rows of it cannot be used (see ``records`` and ``formats``); a limit
            below 1; fewer different prompts than ``minimum``.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise DataError(f"{name}: limit is {limit}; give 1 or more, or leave it out for all rows")
    examples = to_examples(read_records(path, allow_empty=True), path, fmt)
    found = len(examples)
    if limit is not None and limit < found:
        order = list(range(found))
        random.Random(seed).shuffle(order)
        examples = [examples[index] for index in sorted(order[:limit])]
    prompts = len({example.prompt_key for example in examples})
    if prompts < minimum:
        held = f"{found} example{'' if found == 1 else 's'}"
        if len(examples) < found:
            held += f", of which limit {limit} keeps {len(examples)}"
        if prompts < len(examples):
            held += f" with {prompts} different prompt{'' if prompts == 1 else 's'}"
        raise DataError(
            f"{name}: {path.name} has {held}; a domain needs at least {minimum} with different "
            f"prompts (training, dev cut, calibration); add rows to {path}"
        )
    return LoadedData(tuple(examples), data_hash(examples), path)


def data_hash(examples: Iterable[Example]) -> str:
    """Return sha256 (hex) over the examples' messages and meta, in order.

    Canonical JSON, so the same examples hash alike whatever file format they were read from.
    """
    digest = hashlib.sha256()
    for example in examples:
        row = {"messages": example.messages, "meta": example.meta}
        text = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()
