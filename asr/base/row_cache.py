"""A key-value cache whose rows come and go while the others decode.

Rows are aligned on the right, as left-padded prompts are: the newest token of every row stands in
the same column. A step writes all new keys and values into column ``end`` in place, where
transformers' own growing cache copies everything; a row that joins is copied into the columns
before ``end``, one that leaves makes place for the last row. The columns in use, ``[begin, end)``,
are a view of a larger block, moved only where it is full.

Every layer keeps all columns, also those with sliding windows: what a window hides is a matter of
the mask, and aligned on the right the distance between columns is the distance between positions.

Notation used for tensor shapes:
    - b: rows
    - h: key-value heads
    - d: head size
    - n: tokens of a row

What this module does not know: requests, adapters, text. Left out on purpose: layers that keep
recurrent states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one row in one layer: (h, n, d) each; the two may differ in h and d."""

_LEAST_COLUMNS = 256
_LEAST_ROWS = 8


class RowCache(Cache):
    """Keys and values of the rows of a running batch; see the module.

    Args:
        hidden_column: show one column more than the longest row has, which the mask hides. Where
            nothing is hidden, transformers asks PyTorch for grouped queries without a mask, which
            on a CPU takes six times as long as with one (1.2 ms a layer for 8 rows of
            smollm2-135m).

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self, hidden_column: bool = True) -> None:
        super().__init__(layers=[])
        self._hidden = int(hidden_column)
        self.layers: list[Any] = []
        self.lengths: list[int] = []
        self._end = 0  # columns before it are filled
        self._columns = 0
        self._rows = 0  # rows that the blocks have room for
        self._only: int | None = None

    @property
    def width(self) -> int:
        """Columns in use: the longest row's tokens, and the hidden one."""
        return max(self.lengths) + self._hidden if self.lengths else 0

    # -- rows ------------------------------------------------------------------------------------

    def join(self, states: Sequence[KeysValues | None], length: int) -> int:
        """Add a row with its tokens so far; return its number.

        Args:
            states: per layer; None where a layer keeps none of its own. A layer may hold fewer than
                ``length`` tokens (of a sliding window): its last ones.
            length: n.
        """
        if not self.layers:
            self.layers = [_Layer(self, present=state is not None) for state in states]
        self._make_room(len(self.lengths) + 1, length + self._hidden, states)
        row = len(self.lengths)
        self.lengths.append(length)
        for layer, state in zip(self.layers, states, strict=True):
            if state is not None:
                layer.put(row, *state)
        return row

    def leave(self, row: int) -> int:
        """Take a row away; return the number of the (last) row that has its number from now on."""
        last = len(self.lengths) - 1
        if row != last:
            window = self._window()
            for layer in self.layers:
                layer.move(last, row, window)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self._end = 0
        return last

    def states(self, row: int) -> list[KeysValues | None]:
        """Copies of a row's keys and values per layer."""
        columns = slice(self._end - self.lengths[row], self._end)
        return [layer.copy(row, columns) for layer in self.layers]

    # -- a step ----------------------------------------------------------------------------------

    @contextmanager
    def step(self, only: int | None = None) -> Iterator[None]:
        """Within the block one token per row is run; afterwards the rows have grown by it.

        If the block raises, nothing has happened. ``only``: run this row alone, and let no row
        grow: the caller does so with :meth:`grow` when all rows have been run.
        """
        self._make_room(len(self.lengths), self.width + 1, None)
        self._only = only
        try:
            yield
        finally:
            self._only = None
        if only is None:
            self.grow()

    def grow(self) -> None:
        """Count the column that the step has written."""
        self._end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def mask(self, device: torch.device, only: int | None = None) -> Tensor:
        """(b, width + 1) int64: 1 at a row's tokens, the new one included."""
        lengths = self.lengths if only is None else [self.lengths[only]]
        width = self.width
        starts = torch.tensor([width - length for length in lengths], device=device)
        return (torch.arange(width + 1, device=device)[None] >= starts[:, None]).long()

    # -- what transformers asks ------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use."""
        return self.width

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys for a mask of ``query_length`` new tokens."""
        return self.width + query_length, 0

    # -- inside ----------------------------------------------------------------------------------

    def _window(self) -> slice:
        return slice(self._end - self.width, self._end)

    def _shown(self) -> tuple[slice, slice]:
        """Rows and columns that the running step sees, its new column included."""
        rows = (
            slice(0, len(self.lengths)) if self._only is None else slice(self._only, 1 + self._only)
        )
        return rows, slice(self._end - self.width, self._end + 1)

    def _make_room(self, rows: int, width: int, states: Sequence[KeysValues | None] | None) -> None:
        """Let the blocks hold so many rows and columns up to ``end``, and one column behind it."""
        width = max(width, self.width)
        if rows <= self._rows and width <= self._end and self._end < self._columns:
            return
        columns = self._columns
        if width + 1 > columns // 2:
            columns = max(_LEAST_COLUMNS, 2 * (width + 1))
        if rows > self._rows:
            self._rows = max(_LEAST_ROWS, 2 * self._rows, rows)
        old, end = self._window(), max(width, 1)
        for index, layer in enumerate(self.layers):
            like = None if states is None else states[index]
            layer.resize(self._rows, columns, old, end, len(self.lengths), like)
        self._columns, self._end = columns, end


class _Layer(CacheLayerMixin):
    """Keys and values of one layer; :class:`RowCache` says which rows and columns are meant."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, owner: RowCache, present: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner
        self._present = present

    def resize(
        self, rows: int, columns: int, old: slice, end: int, used: int, like: KeysValues | None
    ) -> None:
        """Take a larger block, or the same size anew, with the columns in use before ``end``."""
        if not self._present:
            return
        for name, given in zip(("keys", "values"), like or (None, None), strict=True):
            before: Any = getattr(self, name)
            source: Any = before if before is not None else given
            heads, size = source.shape[-3], source.shape[-1]
            # Zeros: what the mask hides is multiplied by 0, and must not be inf or nan.
            block = source.new_zeros(rows, heads, columns, size)
            if before is not None and used:
                width = old.stop - old.start
                block[:used, :, end - width : end] = before[:used, :, old]
            setattr(self, name, block)
        self.is_initialized = True

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        end = self._owner._end
        for block, given in ((self.keys, keys), (self.values, values)):
            block[row, :, : end - given.shape[-2]] = 0
            block[row, :, end - given.shape[-2] : end] = given

    def move(self, source: int, target: int, columns: slice) -> None:
        if self._present:
            for block in (self.keys, self.values):
                block[target, :, : columns.start] = 0
                block[target, :, columns] = block[source, :, columns]

    def copy(self, row: int, columns: slice) -> KeysValues | None:
        if not self._present:
            return None
        return self.keys[row, :, columns].clone(), self.values[row, :, columns].clone()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one new token per row, (b, h, 1, d), and return all that the rows have."""
        rows, columns = self._owner._shown()
        new = columns.stop - 1
        self.keys[rows, :, new : new + 1] = key_states
        self.values[rows, :, new : new + 1] = value_states
        return self.keys[rows, :, columns], self.values[rows, :, columns]

    # CacheLayerMixin asks for these; RowCache answers for all layers at once.

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: rows join before a step."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """See :meth:`RowCache.get_mask_sizes`."""
        return self._owner.get_mask_sizes(query_length, 0)

    def get_seq_length(self) -> int:
        """See :meth:`RowCache.get_seq_length`."""
        return self._owner.get_seq_length()

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def states_of(cache: Any, row: int, length: int, padded: int) -> list[KeysValues | None]:
    """A row's keys and values per layer, from a cache of left-padded rows after their prefill.

    Args:
        cache: transformers' growing cache.
        row: of the batch.
        length: tokens of the row.
        padded: columns of the batch: the layer's last ``length`` of them are the row's.
    """
    found: list[KeysValues | None] = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or not keys.numel():
            found.append(None)
            continue
        kept = min(length, keys.shape[-2])  # a sliding window keeps its last tokens
        found.append((keys[row, :, -kept:], values[row, :, -kept:]))
    return found
