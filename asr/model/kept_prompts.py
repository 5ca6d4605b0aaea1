"""``eval/<domain>.jsonl``: the examples of a domain's dev cut, kept so that it can be scored again.

They are the user's data: ``keep_eval: false`` leaves them out, and removing a domain deletes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from asr.atomic import write_text
from asr.data.formats import Example, to_examples
from asr.data.records import read_records


def write_kept(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines (``messages`` and ``meta``), atomically.

    Raises:
        StorageError: the file system refused.
    """
    path.parent.mkdir(exist_ok=True)
    rows = [
        json.dumps({"messages": list(example.messages), "meta": example.meta}, ensure_ascii=False)
        for example in examples
    ]
    write_text(path, "".join(row + "\n" for row in rows))


def read_kept(path: Path) -> list[Example]:
    """Read what :func:`write_kept` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    return to_examples(read_records(path), path, "messages")
