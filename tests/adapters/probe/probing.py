"""Rows for the probe, and the gradients that its energies are compared with, by plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asr.adapters import LinearModule
from asr.data.encode import IGNORED, EncodedExample
from tests.tiny_models import VOCAB

LENGTHS = ((11, 4), (7, 2), (14, 14), (5, 1), (9, 6))


def make_rows(lengths: Sequence[tuple[int, int]] = LENGTHS, seed: int = 0) -> list[EncodedExample]:
    """Rows of random tokens: (length, tokens with a label at the end)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, (length, labelled) in enumerate(lengths):
        ids = torch.randint(5, VOCAB, (length,), generator=generator).tolist()
        labels = [IGNORED] * (length - labelled) + ids[length - labelled :]
        rows.append(EncodedExample(ids, labels, f"rows.jsonl:{index + 1}"))
    return rows


def row_loss(model: Any, row: EncodedExample, loss: str = "answer") -> Tensor:
    """The mean loss of one row alone, without padding: all logits, no shortcut."""
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    labels = row.labels if loss == "answer" else row.input_ids
    logits = logits if logits.dtype is torch.float64 else logits.float()
    return functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORED)


def weight_gradients(
    model: Any, row: EncodedExample, modules: Sequence[LinearModule], loss: str = "answer"
) -> list[Tensor]:
    """dL/dW of every module for one row, (out, in)."""
    weights = [model.get_submodule(module.name).weight for module in modules]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        found = torch.autograd.grad(row_loss(model, row, loss), weights)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return [g.T if m.transposed else g for g, m in zip(found, modules, strict=True)]


def first_token_terms(
    model: Any, row: EncodedExample, modules: Sequence[LinearModule]
) -> list[Tensor]:
    """What the first token alone contributes to dL/dW of every module, (out, in)."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name):
        def hook(module, args, output):
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    handles = [model.get_submodule(m.name).register_forward_hook(keep(m.name)) for m in modules]
    start = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output.requires_grad_(True)
    )
    try:
        loss = row_loss(model, row)
    finally:
        for handle in (*handles, start):
            handle.remove()
    gradients = torch.autograd.grad(loss, [outputs[m.name] for m in modules])
    return [
        torch.outer(d.reshape(-1, d.shape[-1])[0], inputs[m.name].reshape(-1, m.in_features)[0])
        for d, m in zip(gradients, modules, strict=True)
    ]
