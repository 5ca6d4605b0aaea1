"""Several LoRAs in one forward pass: each row of a batch has its own, or none.

A LoRA adds ``x A^T B`` to a linear module's output. Where rows have different ones, one of three
forms computes it, by how the rows lie:

- **one**: all rows have the same adapter. Two products.
- **masked**: few tokens per row (decoding). The factors of all adapters are stacked, ``A`` to
  (R, i) and ``B`` to (R, o); every row runs through both, and in between the columns that are not
  its own are set to zero. Two products whatever the number of adapters. They are set by selection,
  not by a product with 0: an infinity of one row must not reach another.
- **runs**: many tokens per row (prefill, training). Consecutive rows of one adapter are a
  contiguous slice; each slice runs through its own factors, and the rows of the base through none.
  Slices of equal shape go through one pair of batched products when gradients are asked for.

All three carry gradients to the factors and to ``x``. Without gradients the output is added to in
place. This file knows neither models nor files: it computes on the input and output of one module.

Notation used for tensor shapes:
    - b: rows of the batch
    - t: tokens per row
    - i, o: input and output width of the module
    - r: rank of one adapter, R: sum of the ranks of a stack
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TOKENS_PER_RUN = {"cpu": 16, "cuda": 4096}
"""Mean tokens of a run from which on runs are faster than a masked stack, by the kind of device.

On a GPU it is launches that cost: eight runs took 3.5 times the bare base's prefill on an H200.
"""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Stack:
    """The factors of several adapters on one module, side by side.

    Attributes:
        layout: (name, rank) per adapter, in the order of the columns.
        a: (R, i).
        b: (R, o).
    """

    layout: tuple[tuple[str, int], ...]
    a: Tensor
    b: Tensor


def stack(factors: Mapping[str, Factors]) -> Stack:
    """Put factors side by side: a copy, which carries gradients back to them; one alone is itself.

    Raises:
        ValueError: no factors.
    """
    if not factors:
        raise ValueError("no factors to stack")
    layout = tuple((name, each.rank) for name, each in factors.items())
    each = list(factors.values())
    if len(each) == 1:
        return Stack(layout, each[0].a, each[0].b)
    return Stack(layout, torch.cat([f.a for f in each]), torch.cat([f.b for f in each]))


class Rows:
    """Which adapter each row of a batch has.

    Args:
        names: (b,) names of adapters; None for the base.
        device: of the batch.
    """

    def __init__(self, names: Sequence[str | None], device: torch.device) -> None:
        self.names = tuple(names)
        self.device = device
        self.used = frozenset(name for name in self.names if name is not None)
        self.runs = _runs(self.names)
        self._masks: dict[tuple[tuple[str, int], ...], Tensor] = {}

    def foreign(self, layout: tuple[tuple[str, int], ...]) -> Tensor:
        """(b, R) bool: True where a column of the stack is not the row's own."""
        if layout not in self._masks:
            owners = [name for name, rank in layout for _ in range(rank)]
            mask = [[name != owner for owner in owners] for name in self.names]
            self._masks[layout] = torch.tensor(mask, device=self.device)
        return self._masks[layout]


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
        stacked: gives what :func:`stack` made of (at least) them; called when it is first needed.
            None: it is made here.
    """

    def __init__(
        self,
        rows: Rows,
        factors: Mapping[str, Factors],
        stacked: Callable[[], Stack] | None = None,
    ) -> None:
        self.rows = rows
        self.factors = {name: each for name, each in factors.items() if name in rows.used}
        self._make_stack = stacked or (lambda: stack(self.factors))
        self._stacked: Stack | None = None

    def add(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the module's output with every row's LoRA added.

        Args:
            output: (b, t, o), or (b * t, o) where the rows were flattened to tokens.
            x: the module's input, (b, t, i) or (b * t, i).

        Raises:
            ValueError: the number of rows is not that of the batch.
        """
        rows = len(self.rows.names)
        if x.shape[0] % rows or (x.ndim > 2 and x.shape[0] != rows):
            raise ValueError(
                f"a batch of {x.shape[0]} rows runs with adapters for {rows}; give one per row"
            )
        if not self.factors:
            return output
        tokens = x.numel() // x.shape[-1]
        x = x.reshape(tokens, x.shape[-1])
        y = output.reshape(tokens, output.shape[-1])
        only = self.rows.runs[0][2] if len(self.rows.runs) == 1 else None
        if only is not None:
            result = _add(y, _down(x, self.factors[only]), self.factors[only].b)
        elif tokens >= _enough_tokens(x.device) * len(self.rows.runs):
            result = self._by_runs(y, x, tokens // rows)
        else:
            result = self._masked(y, x, tokens // rows)
        return result.view(output.shape)

    def _masked(self, y: Tensor, x: Tensor, per_row: int) -> Tensor:
        if self._stacked is None:
            self._stacked = self._make_stack()
        columns = self._stacked
        foreign = self.rows.foreign(columns.layout)
        if per_row > 1:
            foreign = foreign.repeat_interleave(per_row, dim=0)
        low = functional.linear(x.to(columns.a.dtype), columns.a)
        return _add(y, low.masked_fill(foreign, 0.0), columns.b)

    def _by_runs(self, y: Tensor, x: Tensor, per_row: int) -> Tensor:
        runs = [
            (slice(first * per_row, last * per_row), self.factors.get(name or ""))
            for first, last, name in self.rows.runs
        ]
        if _carries_gradient(y, x, *(f.a for f in self.factors.values())):
            return y + _low_rank_of_runs(x, runs, y.shape[-1]).to(y.dtype)
        for where, factors in runs:
            if factors is not None:
                _add(y[where], _down(x[where], factors), factors.b)
        return y


def _enough_tokens(device: torch.device) -> int:
    return TOKENS_PER_RUN["cpu" if device.type == "cpu" else "cuda"]


def _down(x: Tensor, factors: Factors) -> Tensor:
    return functional.linear(x.to(factors.a.dtype), factors.a)


def _add(y: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """``y + low b``, in place where nothing carries a gradient."""
    if y.dtype != b.dtype:
        return y.add_((low @ b).to(y.dtype)) if not torch.is_grad_enabled() else y + low @ b
    if _carries_gradient(y, low, b):
        return torch.addmm(y, low, b)
    return y.addmm_(low, b)


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
        a = torch.stack([factors.a for factors in present])  # (runs, r, i)
        b = torch.stack([factors.b for factors in present])  # (runs, r, o)
        parts = x.to(a.dtype).view(len(runs), -1, x.shape[-1])
        return torch.bmm(torch.bmm(parts, a.transpose(1, 2)), b).view(-1, width)
    dtype = present[0].a.dtype
    return torch.cat(
        [
            x.new_zeros(where.stop - where.start, width, dtype=dtype)
            if factors is None
            else _down(x[where], factors) @ factors.b
            for where, factors in runs
        ]
    )
