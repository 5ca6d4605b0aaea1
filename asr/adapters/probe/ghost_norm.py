"""Norms of per-sample weight gradients, without the gradients.

A linear module that maps the token inputs ``Z`` of a sample to outputs with gradients ``D`` has the
weight gradient ``G = D^T Z``. Its squared norm needs no ``G``::

    ||D^T Z||_F^2 = sum_{t,t'} (D D^T)_{t,t'} (Z Z^T)_{t,t'}

(the *Gram form*: t x t matrices, and one ``Z Z^T`` serves every module that reads the same input),
or needs it only piece by piece (the *product form*). Whichever takes fewer multiplications is
chosen. Both Grams are symmetric: only their lower block triangle is computed and kept.

The norm *without the first token* drops the terms of one token (of one per row, where a whole batch
is a sample). The two norms are kept apart in the direction that loses no digits: the gradient ``H``
of the other tokens is what the products are made of, and the first token (``u`` of ``D``, ``v`` of
``Z``) is added through ``||H + u v^T||^2 = ||H||^2 + 2 u^T H v + |u|^2 |v|^2``, where
``u^T H v = sum_t (D_t u) (Z_t v)``. The other way round, a massive activation at the first token
would leave the difference of two huge numbers.

Notation used for tensor shapes:
    - n: samples of the batch (1 where the whole batch counts as one)
    - t: tokens of a sample, padding included
    - f: first tokens of a sample
    - i, o: input and output width of the module
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 128
"""Tokens in a block of a Gram at least: smaller ones cost more time than they save (measured)."""

_BLOCKS = 4
"""Blocks at most: 4 leave 62% of the products of a whole Gram."""

_PIECE = 2**22
"""Entries of a gradient that the product form holds at once."""


@dataclass(frozen=True)
class Tokens:
    """Which tokens of a padded batch count, and which are the first.

    Attributes:
        real: (n, t) bool, False at padding.
        first: (n, f) int64, index of each first real token; None where it is not known.
    """

    real: Tensor
    first: Tensor | None

    @classmethod
    def of_rows(cls, mask: Tensor) -> Tokens:
        """Every row is a sample; ``mask`` is (n, t), 0 at padding on either side."""
        real = mask.bool()
        return cls(real, real.int().argmax(dim=1, keepdim=True))

    @classmethod
    def of_batch(cls, mask: Tensor) -> Tokens:
        """The whole batch is one sample, with a first token in each of its rows."""
        rows, length = mask.shape
        first = cls.of_rows(mask).first
        assert first is not None
        begins = torch.arange(rows, device=mask.device) * length
        return cls(mask.bool().reshape(1, -1), (first.squeeze(1) + begins).unsqueeze(0))

    @classmethod
    def unplaced(cls, count: int, device: torch.device) -> Tokens:
        """``count`` tokens of one sample in an unknown order: all count, none is the first."""
        return cls(torch.ones(1, count, dtype=torch.bool, device=device), None)

    def others(self) -> Tensor:
        """(n, t) bool: real tokens but the first."""
        return self.real if self.first is None else self.real.scatter(1, self.first, False)


def gram_is_cheaper(tokens: int, in_features: int, out_features: Sequence[int]) -> bool:
    """Whether the Gram form takes fewer multiplications than the product form.

    Args:
        tokens: tokens of a sample.
        in_features: width of the input.
        out_features: output widths of the modules that read this very input.
    """
    blocks = len(list(_blocks(tokens)))
    share = (blocks + 1) / (2 * blocks)
    gram = share * tokens * (in_features + sum(out_features))
    return gram < in_features * sum(out_features)


class TokenInputs:
    """What is kept of a module's input from the forward pass until gradients arrive.

    Args:
        inputs: (n, t, i), of any floating type.
        tokens: which of them count.
        dtype: type to multiply in; sums are float32, or float64 where this is float64.
        gram: keep the Gram (in ``dtype``), not the input.
    """

    def __init__(self, inputs: Tensor, tokens: Tokens, dtype: torch.dtype, *, gram: bool) -> None:
        self._dtype = dtype
        self._sums = torch.promote_types(dtype, torch.float32)
        self._first = tokens.first
        self._others = tokens.others()
        inputs = inputs.to(dtype)
        self._with_first: Tensor | None = None
        if self._first is not None:
            self._with_first = self._weighted_with_first(inputs, tokens.real)
        self._gram = self._weighted_gram(inputs) if gram else None
        self._inputs = None if gram else inputs

    def squared_norms(self, gradients: Tensor) -> Tensor:
        """Squared norms of the weight gradients.

        Args:
            gradients: (n, t, o), the loss's gradient with respect to the module's output.

        Returns:
            (n, 2): of all real tokens, and without the first (NaN where that is not known).
        """
        gradients = gradients.to(self._dtype)
        if self._gram is not None:
            without = self._through_gram(gradients, self._gram)
        else:
            without = self._through_product(gradients)
        if self._first is None or self._with_first is None:
            return torch.stack([without, torch.full_like(without, torch.nan)], dim=1)
        theirs = _products_with(gradients, self._first).to(self._sums)  # (n, t, f)
        first = (self._with_first * theirs).sum(dim=(1, 2))
        return torch.stack([without + first, without], dim=1)

    def _weighted_with_first(self, inputs: Tensor, real: Tensor) -> Tensor:
        """(n, t, f): ``Z_t v`` twice over, once where t is itself a first token, 0 at padding."""
        assert self._first is not None
        found = _products_with(inputs, self._first).to(self._sums)
        found.masked_fill_(~real.unsqueeze(-1), 0.0)
        return found.mul_(1.0 + self._others.unsqueeze(-1).to(found.dtype))

    def _weighted_gram(self, inputs: Tensor) -> list[Tensor]:
        """Lower block triangle of ``Z Z^T``: 0 at tokens that do not count, doubled off it."""
        pieces: list[Tensor] = []
        ignored = ~self._others
        for begin, end in _blocks(inputs.shape[1]):
            piece = torch.bmm(inputs[:, begin:end], inputs[:, :end].mT)
            piece.masked_fill_(ignored[:, begin:end, None], 0.0)
            piece.masked_fill_(ignored[:, None, :end], 0.0)
            piece[:, :, :begin] *= 2
            pieces.append(piece)
        return pieces

    def _through_gram(self, gradients: Tensor, gram: list[Tensor]) -> Tensor:
        total = torch.zeros(gradients.shape[0], dtype=self._sums, device=gradients.device)
        for (begin, end), piece in zip(_blocks(gradients.shape[1]), gram, strict=True):
            other = torch.bmm(gradients[:, begin:end], gradients[:, :end].mT)
            total += piece.to(self._sums).mul(other).sum(dim=(1, 2))
        return total

    def _through_product(self, gradients: Tensor) -> Tensor:
        assert self._inputs is not None
        samples, _, width = self._inputs.shape
        gradients = gradients.masked_fill(~self._others.unsqueeze(-1), 0.0)
        total = torch.zeros(samples, dtype=self._sums, device=gradients.device)
        for part in gradients.split(max(1, _PIECE // (samples * width)), dim=2):
            piece = torch.bmm(part.mT, self._inputs)  # (n, part of o, i)
            norms = torch.linalg.vector_norm(piece, dim=(1, 2), dtype=self._sums)
            total += norms.square()
        return total


def _products_with(vectors: Tensor, chosen: Tensor) -> Tensor:
    """(n, t, f): products of (n, t, d) vectors with those among them that (n, f) indices name."""
    index = chosen.unsqueeze(-1).expand(-1, -1, vectors.shape[-1])
    return torch.bmm(vectors, vectors.gather(1, index).mT)


def _blocks(tokens: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of tokens."""
    count = max(1, min(_BLOCKS, tokens // _BLOCK))
    for block in range(count):
        yield tokens * block // count, tokens * (block + 1) // count
