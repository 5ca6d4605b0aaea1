"""A text of our own to probe with where the user has no data yet.

Fifty short exchanges of mixed kinds: explaining, rewriting, arithmetic, code, extraction, chat,
lists, other languages. Which module dominates is reported to depend on the architecture far more
than on the task (arXiv 2605.06183), so the winner found on it is a fair first guess; margins and
shares are of this text, and of no other.
"""

from __future__ import annotations

import json
from importlib.resources import files

from asr.data.formats import Example
from asr.data.turns import turn

GENERIC_NAME = "generic"
"""What the domain of this text is called in results."""

TRUST = (
    "no data was given: probed on 50 short exchanges of our own. Which module leads is reported to "
    "be a matter of the architecture more than of the task; margins and shares are of this text, "
    "not of yours. Give your own with --data NAME=DATA"
)
"""How far to trust a probe of it."""

_FILE = "generic_text.json"


def generic_examples() -> tuple[Example, ...]:
    """Return the exchanges, in order."""
    rows = json.loads(files("asr.adapters.probe").joinpath(_FILE).read_text(encoding="utf-8"))
    return tuple(
        Example(
            (turn("user", row["prompt"]), turn("assistant", row["completion"])),
            source=f"{_FILE}:{number}",
        )
        for number, row in enumerate(rows, start=1)
    )
