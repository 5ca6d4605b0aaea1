"""Features of prompts, each made once and kept in a file by what the prompt says.

Benchmarks cut the same prompts in many ways; with these, another cut costs nothing.

Notation: n prompts, V views.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.routing_prompts import Prompt, Prompts, flat

Rows = dict[str, dict[str, np.ndarray]]
"""By class, then by side (``statistics``, ``held_out``, ``dev``): (n, V, ...) float32."""

SAVED_AT_ONCE = 500
"""Prompts between two writings of the file: what a stopped run loses."""

SIDES = ("statistics", "held_out", "dev")


class KeptRows:
    """Rows by prompt; what is missing is made, all at once.

    Args:
        make: prompts to rows (n, ...), float32.
        made_by: what the rows depend on but for the prompt; a file made otherwise is refused.
        path: where they are kept; None for the life of the object.

    Raises:
        ValueError: the file was made by something else.
    """

    def __init__(
        self, make: Callable[[list[Prompt]], np.ndarray], made_by: str, path: Path | None = None
    ) -> None:
        self._make, self._made_by, self._path = make, made_by, path
        self._rows: dict[str, np.ndarray] = {}
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["made_by"]) != made_by:
                    raise ValueError(
                        f"{path} holds features of '{kept['made_by']}', not '{made_by}'; name"
                        " another file, or delete it"
                    )
                self._rows = dict(zip(kept["keys"].tolist(), kept["rows"], strict=True))

    def prepare(self, prompts: Iterable[Prompt]) -> None:
        """Make what is missing, and write it down as it comes."""
        missing = {key_of(prompt): prompt for prompt in prompts}
        missing = {key: prompt for key, prompt in missing.items() if key not in self._rows}
        keys = list(missing)
        for start in range(0, len(keys), SAVED_AT_ONCE):
            chosen = keys[start : start + SAVED_AT_ONCE]
            made = self._make([missing[key] for key in chosen])
            self._rows |= zip(chosen, made, strict=True)
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_suffix(".part.npz")
        keys, rows = np.array(list(self._rows)), np.stack(list(self._rows.values()))
        np.savez(beside, made_by=np.array(self._made_by), keys=keys, rows=rows)
        os.replace(beside, self._path)

    def __call__(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return the rows of prompts, (n, ...) in their order."""
        self.prepare(prompts)
        return np.stack([self._rows[key_of(prompt)] for prompt in prompts])

    def classes(self, classes: Mapping[str, Prompts]) -> Rows:
        """Return the rows of every side of every class; a side without prompts has (0, 1, ...)."""
        everything = [view for p in classes.values() for side in SIDES for view in _side(p, side)]
        self.prepare(everything)
        empty = np.zeros((0, 1, *self(everything[:1]).shape[1:]), dtype=np.float32)
        made: Rows = {}
        for name, prompts in classes.items():
            made[name] = {}
            for side in SIDES:
                given = getattr(prompts, side)
                rows = self(flat(given)) if given else empty
                made[name][side] = rows.reshape(len(given), -1, *rows.shape[1:]) if given else empty
        return made


def key_of(prompt: Prompt) -> str:
    """sha256 (hex) of a prompt's turns."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()


def _side(prompts: Prompts, side: str) -> list[Prompt]:
    return flat(getattr(prompts, side))
