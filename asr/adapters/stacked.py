"""Several LoRAs in one forward pass: each row of a batch has its own, or none.

A LoRA adds ``x A^T B`` to a linear module's output. Where rows have different ones, one of four
forms computes it, by how the rows lie:

- **one**: all rows have the same adapter. Two products.
- **grid**: few tokens per row (decoding), rows spread evenly over the adapters. The factors of the
  adapters are stacked, ``A`` to (s, r, i) and ``B`` to (s, r, o); rows are sorted into a grid of
  (s, n), n the most rows of one adapter, and two batched products do the rest.
- **masked**: the same where most rows share few adapters, so that the grid would be mostly empty.
  Every row runs through all factors, and in between the columns that are not its own are set to
  zero. They are set by selection, not by a product with 0: an infinity of one row must not reach
  another.
- **runs**: many tokens per row (prefill, training). Consecutive rows of one adapter are a
  contiguous slice; each slice runs through its own factors, and the rows of the base through none.
  Slices of equal shape go through one pair of batched products when gradients are asked for.

Rows of the base are never added to. *One* and *runs* carry gradients to the factors and to ``x``
(*grid* and *masked* are for inference). Without gradients the output is added to in place. This
file knows neither models nor files: it computes on the input and output of one module.

On a CPU factors are float32 also over a bfloat16 base: products as thin as these are two to four
times faster in it, and no less exact. In *runs* they are cast down, where products are thick.

Notation used for tensor shapes:
    - b: rows of the batch
    - t: tokens per row
    - i, o: input and output width of the module
    - r: rank of one adapter
    - s: slots of a stack
    - n: most rows of one adapter
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TOKENS_PER_RUN = {"cpu": 16, "cuda": 4096}
"""Mean tokens of a run from which on runs are faster than a stack, by the kind of device.

On a GPU it is launches that cost: eight runs took 3.5 times the bare base's prefill on an H200.
"""
_EMPTIEST_GRID = 2.0
"""Places of a grid over its rows from which on a masked stack is faster."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A LoRA on one module.

    Attributes:
        a: (r, i).
        b: (r, o), the transpose of PEFT's ``lora_B``, with the scaling multiplied in.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.a.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of both factors in memory."""
        return int(self.a.nbytes + self.b.nbytes)


class Stack:
    """The factors of several adapters on one module, each in a slot; a copy.

    Attributes:
        a: (s, r, i), r the largest rank there was; smaller ones are filled up with zeros.
        b: (s, r, o).
    """

    def __init__(self) -> None:
        self.a = torch.empty(0, 0, 0)
        self.b = torch.empty(0, 0, 0)
        self._holds: list[Factors | None] = []

    def hold(self, wanted: Sequence[Factors | None]) -> None:
        """Let slot k hold ``wanted[k]`` (None: nothing); what is there already is not copied.

        Raises:
            ValueError: nothing at all is wanted.
        """
        present = [factors for factors in wanted if factors is not None]
        if not present:
            raise ValueError("no factors to stack")
        rank = max(self.a.shape[1], *(factors.rank for factors in present))
        if len(wanted) != len(self._holds) or rank > self.a.shape[1]:
            like = present[0]
            self.a = like.a.new_zeros(len(wanted), rank, like.a.shape[1])
            self.b = like.b.new_zeros(len(wanted), rank, like.b.shape[1])
            self._holds = [None] * len(wanted)
        for slot, factors in enumerate(wanted):
            if factors is self._holds[slot]:
                continue
            self.a[slot], self.b[slot] = 0, 0
            if factors is not None:
                self.a[slot, : factors.rank] = factors.a
                self.b[slot, : factors.rank] = factors.b
            self._holds[slot] = factors


class Rows:
    """Which adapter each row of a batch has, and in which slot of a stack it lies.

    Args:
        names: (b,) names of adapters; None for the base.
        slots: names of the adapters in a stack, in its order; every name of ``names`` is among
            them wherever a stack is used.
        device: of the batch.

    Attributes:
        used: the adapters among the rows.
        runs: consecutive rows of one adapter: (first row, row behind the last, name).
        is_even: whether a grid is a faster form than a masked stack.
    """

    def __init__(
        self, names: Sequence[str | None], slots: Sequence[str], device: torch.device
    ) -> None:
        self.names = tuple(names)
        self.slots = tuple(slots)
        self.device = device
        self.used = frozenset(name for name in self.names if name is not None)
        self.runs = _runs(self.names)
        counts = Counter(name for name in self.names if name is not None)
        self.most = max(counts.values(), default=0)
        self.adapted = sum(counts.values())
        self._grids: dict[int, Grid] = {}
        self._foreign: dict[int, Tensor] = {}
        places = len(self.slots) * self.most
        self.is_even = places <= _EMPTIEST_GRID * max(1, self.adapted)

    def grid(self, tokens: int) -> Grid:
        """The rows sorted into slots, with so many tokens each."""
        if tokens not in self._grids:
            self._grids[tokens] = Grid(self, tokens)
        return self._grids[tokens]

    def foreign(self, rank: int) -> Tensor:
        """(b, s * rank) bool: True where a column of a stack is not the row's own."""
        if rank not in self._foreign:
            owners = [name for name in self.slots for _ in range(rank)]
            mask = [[name != owner for owner in owners] for name in self.names]
            self._foreign[rank] = torch.tensor(mask, device=self.device)
        return self._foreign[rank]


class Grid:
    """Where tokens stand in a grid of (s, n * t), and where their sums go.

    Attributes:
        shape: (s, n * t).
        into: (s * n * t,) the token that stands in each place; any token in an empty one. None
            where places and tokens are the same, in order.
        places: (adapted tokens,) the place of every token with an adapter.
        tokens: the same tokens' numbers in the batch; None where all have an adapter.
    """

    def __init__(self, rows: Rows, per_row: int) -> None:
        taken: Counter[str] = Counter()
        width = rows.most * per_row
        into = [0] * (len(rows.slots) * width)
        places: list[int] = []
        tokens: list[int] = []
        slot = {name: index for index, name in enumerate(rows.slots)}
        for row, name in enumerate(rows.names):
            if name is None:
                continue
            first = slot[name] * width + taken[name] * per_row
            taken[name] += 1
            for token in range(per_row):
                into[first + token] = row * per_row + token
                places.append(first + token)
                tokens.append(row * per_row + token)
        total = len(rows.names) * per_row
        whole = tokens == list(range(total))
        self.shape = (len(rows.slots), width)
        same = whole and places == tokens and len(into) == total
        self.into = None if same else torch.tensor(into, device=rows.device)
        self.places = None if same else torch.tensor(places, device=rows.device)
        self.tokens = None if whole else torch.tensor(tokens, device=rows.device)


def _runs(names: Sequence[str | None]) -> list[tuple[int, int, str | None]]:
    """Consecutive rows of one adapter: (first row, row behind the last, name)."""
    runs: list[tuple[int, int, str | None]] = []
    for row, name in enumerate(names):
        if runs and runs[-1][2] == name:
            runs[-1] = (runs[-1][0], row + 1, name)
        else:
            runs.append((row, row + 1, name))
    return runs


class ModuleAdapters:
    """The adapters of a batch on one linear module.

    Args:
        rows: the adapters of the rows.
        factors: by adapter; those that do not touch the module are absent.
        stacked: gives the stack of the rows' slots on this module; called when it is first needed.
    """

    def __init__(
        self, rows: Rows, factors: Mapping[str, Factors], stacked: Callable[[], Stack]
    ) -> None:
        self.rows = rows
        self.factors = {name: each for name, each in factors.items() if name in rows.used}
        self._make_stack = stacked
        self._stacked: Stack | None = None
        only = rows.runs[0][2] if len(rows.runs) == 1 else None
        self._only = None if only is None else self.factors.get(only)

    def add(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the module's output with every row's LoRA added.

        Args:
            output: (b, t, o), or (b * t, o) where the rows were flattened to tokens.
            x: the module's input, (b, t, i) or (b * t, i).

        Raises:
            ValueError: the number of rows is not that of the batch.
        """
        if not self.factors:
            return output
        rows, width = len(self.rows.names), x.shape[-1]
        if x.shape[0] != rows and (x.ndim > 2 or x.shape[0] % rows):
            raise ValueError(
                f"a batch of {x.shape[0]} rows runs with adapters for {rows}; give one per row"
            )
        tokens = x.numel() // width
        x = x.reshape(tokens, width)
        y = output.reshape(tokens, output.shape[-1])
        if self._only is not None:
            result = _add_run(y, x, self._only, tokens)
        elif torch.is_grad_enabled() and self._learns(y, x):
            result = y + _low_rank_of_runs(x, self._slices(tokens // rows), y.shape[-1]).to(y.dtype)
        elif tokens >= _enough_tokens(x.device) * len(self.rows.runs):
            for where, factors in self._slices(tokens // rows):
                if factors is not None:
                    _add_run(y[where], x[where], factors, where.stop - where.start)
            result = y
        elif self.rows.is_even:
            result = self._on_a_grid(y, x, tokens // rows)
        else:
            result = self._masked(y, x, tokens // rows)
        return result.view(output.shape)

    def _learns(self, y: Tensor, x: Tensor) -> bool:
        return _carries_gradient(y, x, *(factors.a for factors in self.factors.values()))

    def _stack(self) -> Stack:
        if self._stacked is None:
            self._stacked = self._make_stack()
        return self._stacked

    def _on_a_grid(self, y: Tensor, x: Tensor, per_row: int) -> Tensor:
        columns, grid = self._stack(), self.rows.grid(per_row)
        x = x.to(columns.a.dtype)
        if grid.into is not None:
            x = x.index_select(0, grid.into)
        low = torch.bmm(x.view(*grid.shape, -1), columns.a.transpose(1, 2))
        sums = torch.bmm(low, columns.b).view(-1, y.shape[-1])
        if grid.places is not None:
            sums = sums.index_select(0, grid.places)
        if grid.tokens is not None:
            return y.index_add_(0, grid.tokens, sums.to(y.dtype))
        return y.add_(sums)

    def _masked(self, y: Tensor, x: Tensor, per_row: int) -> Tensor:
        columns = self._stack()
        foreign = self.rows.foreign(columns.a.shape[1])
        if per_row > 1:
            foreign = foreign.repeat_interleave(per_row, dim=0)
        low = functional.linear(x.to(columns.a.dtype), columns.a.flatten(0, 1))
        return _add(y, low.masked_fill(foreign, 0.0), columns.b.flatten(0, 1))

    def _slices(self, per_row: int) -> list[tuple[slice, Factors | None]]:
        return [
            (slice(first * per_row, last * per_row), self.factors.get(name or ""))
            for first, last, name in self.rows.runs
        ]


def _enough_tokens(device: torch.device) -> int:
    return TOKENS_PER_RUN["cpu" if device.type == "cpu" else "cuda"]


def _add_run(y: Tensor, x: Tensor, factors: Factors, tokens: int) -> Tensor:
    """``y + x A^T B`` of rows that all have these factors; in the type of x where it is thick."""
    dtype = x.dtype if tokens >= TOKENS_PER_RUN["cpu"] else factors.a.dtype
    return _add(y, functional.linear(x.to(dtype), factors.a.to(dtype)), factors.b.to(dtype))


def _add(y: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """``y + low b``, in place where nothing carries a gradient."""
    if _carries_gradient(y, low, b):
        return torch.addmm(y, low, b) if y.dtype == b.dtype else y + (low @ b).to(y.dtype)
    return y.addmm_(low, b) if y.dtype == b.dtype else y.add_(low @ b)


def _carries_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _low_rank_of_runs(
    x: Tensor, runs: Sequence[tuple[slice, Factors | None]], width: int
) -> Tensor:
    """(tokens, o): every run through its own factors, in one pair of products where they fit."""
    shapes = {
        (where.stop - where.start, None if factors is None else factors.rank)
        for where, factors in runs
    }
    present = [factors for _, factors in runs if factors is not None]
    if len(shapes) == 1 and len(present) == len(runs):
        a = torch.stack([factors.a for factors in present]).to(x.dtype)  # (runs, r, i)
        b = torch.stack([factors.b for factors in present]).to(x.dtype)  # (runs, r, o)
        parts = x.view(len(runs), -1, x.shape[-1])
        return torch.bmm(torch.bmm(parts, a.transpose(1, 2)), b).view(-1, width)
    return torch.cat(
        [
            x.new_zeros(where.stop - where.start, width)
            if factors is None
            else functional.linear(x[where], factors.a.to(x.dtype)) @ factors.b.to(x.dtype)
            for where, factors in runs
        ]
    )
