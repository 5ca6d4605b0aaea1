"""A domain's data from its file or hub data set: read, checked, limited, hashed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asr.data.formats import Example, file_format, to_examples
from asr.data.hub import is_hub
from asr.data.problems import RowProblems
from asr.data.side_meta import join_meta
from asr.data.source import read_source
from asr.errors import DataError

MINIMUM_PROMPTS = 4


@dataclass(frozen=True)
class LoadedData:
    """Examples in file order, their hash, the file they came from, and its format.

    ``path`` of a hub data set is ``hub:ORGANISATION/NAME...``.
    """

    examples: tuple[Example, ...]
    sha256: str
    path: Path
    format: str | None = None


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
        path: a file (JSON lines, JSON, CSV, TSV, Parquet) or ``hub:...``. The ``.meta.jsonl``
            beside a file is joined with it.
        name: the domain, for messages.
        fmt: one of :data:`asr.data.shapes.FORMATS`; None to detect it.
        limit: keep the first ``limit`` of a shuffle of the rows by ``seed``. A larger limit keeps
            all that a smaller one does; what is kept stays in file order.
        minimum: how many different prompts there must be.
        seed: of that shuffle.

    Raises:
        DataError: the file or rows of it cannot be used (see ``source``, ``formats`` and
            ``side_meta``; all bad rows are in one error); a limit below 1; fewer different prompts
            than ``minimum``.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise DataError(f"{name}: limit is {limit}; give 1 or more, or leave it out for all rows")
    problems = RowProblems(path)
    source = read_source(path, problems)
    examples = to_examples(source.records, path, fmt, unit=source.unit, problems=problems)
    problems.raise_if_any(source.rows)
    examples = join_meta(examples, path)
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
        more = "use another split or data set" if is_hub(path) else f"add rows to {path}"
        more = "raise limit, or leave it out" if len(examples) < found else more
        needed = (
            f"a domain needs at least {minimum} with different prompts (training, dev cut, "
            "calibration)"
            if minimum > 1
            else "at least 1 is needed"
        )
        raise DataError(f"{name}: {path.name} has {held}; {needed}; {more}")
    return LoadedData(tuple(examples), data_hash(examples), path, file_format(source.records, fmt))


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
