"""States of finished conversations, so that their next turn pays for its new tokens only.

An entry holds what one row left behind: its tokens, the hidden states that entered the router
layer ``L``, and the keys and values of all layers. They are two caches in one. What lies below
``L`` is the base's alone and serves any later prompt that begins with the same tokens. What lies
from ``L`` up was made with one adapter and serves that adapter only: it is looked up by the hash of
its file, after the decision (sharing it across adapters is how engines came to answer with somebody
else's adapter).

Notation used for tensor shapes:
    - n: tokens of an entry
    - d: hidden size

Left out on purpose: adapters below ``L`` (two passes), whose lower layers are not the base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asr.base.row_cache import KeysValues

WORTH = 64
"""Fewest tokens for which an entry is used: such a prompt is prefilled alone, not in a batch."""


@dataclass(frozen=True)
class Entry:
    """What one row left behind.

    Attributes:
        tokens: (n,) int64, those whose states are kept: the prompt and all of the answer but its
            last token.
        hidden: (n, d), the hidden states that entered layer ``L``.
        states: keys and values per layer.
        key: identity of the adapter that the layers from ``L`` up were made with.
    """

    tokens: NDArray[np.int64]
    hidden: Tensor
    states: list[KeysValues | None]
    key: str

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        pairs = [pair for pair in self.states if pair is not None]
        return int(self.hidden.nbytes + sum(k.nbytes + v.nbytes for k, v in pairs))


@dataclass(frozen=True)
class Match:
    """An entry, and how many of a prompt's first tokens it has."""

    entry: Entry
    length: int


class PrefixCache:
    """Entries within a budget; the least recently used leave first.

    Args:
        budget: most bytes; 0 keeps nothing.

    Attributes:
        nbytes: bytes in use.
        hits: prompts that took states from an entry.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.hits = 0
        self._entries: list[Entry] = []  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def shallow(self, tokens: Sequence[int]) -> Match | None:
        """The entry with most of a prompt's first tokens, whatever its adapter."""
        return self._longest(tokens, self._entries)

    def deep(self, tokens: Sequence[int], key: str) -> Match | None:
        """The same among the entries of one adapter."""
        return self._longest(tokens, [entry for entry in self._entries if entry.key == key])

    def put(self, entry: Entry) -> None:
        """Keep an entry; one of the same adapter that it continues goes."""
        size = entry.nbytes
        if size > self.budget or len(entry.tokens) < WORTH:
            return
        for old in list(self._entries):
            if old.key == entry.key and _common(old.tokens, entry.tokens) == len(old.tokens):
                self._remove(old)
        while self._entries and self.nbytes + size > self.budget:
            self._remove(self._entries[0])
        self._entries.append(entry)
        self.nbytes += size

    def keep_only(self, keys: Sequence[str]) -> None:
        """Forget what adapters that are no longer served have made."""
        for entry in [entry for entry in self._entries if entry.key not in keys]:
            self._remove(entry)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0

    # -- inside ----------------------------------------------------------------------------------

    def _longest(self, tokens: Sequence[int], entries: Sequence[Entry]) -> Match | None:
        if not entries or len(tokens) <= WORTH:
            return None
        prompt = np.asarray(tokens, dtype=np.int64)
        # The last token is always run: its logits begin the answer.
        lengths = [_common(entry.tokens, prompt[:-1]) for entry in entries]
        best = int(np.argmax(lengths))
        if lengths[best] < WORTH:
            return None
        entry = entries[best]
        index = next(i for i, one in enumerate(self._entries) if one is entry)
        self._entries.append(self._entries.pop(index))
        return Match(entry, lengths[best])

    def _remove(self, entry: Entry) -> None:
        self._entries = [one for one in self._entries if one is not entry]
        self.nbytes -= entry.nbytes


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
