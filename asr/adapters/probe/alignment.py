"""PLoP's alignment score: how far a module's weight fits what really enters it (arXiv 2506.20629).

For tokens z that enter a weight W (bias left out) the normalised feature norm is

    NFN(W) = mean_t ||W z_t|| / mean_t E||W u_t||,   E||W u||^2 = ||W||_F^2 ||z||^2 / d_in

where u_t is a random direction as long as z_t. 1: the weight treats the data like noise; above 1:
the two are aligned. PLoP puts adapters into the *module types* of the lowest mean score.

Differences from the authors' code, each on purpose: the baseline is the closed form
``||W||_F ||z_t|| / sqrt(d_in)`` and not one random draw (the two agree up to Jensen's inequality,
which vanishes with d_out); means are over all tokens, not over those of a batch and then over the
batches; padding does not count; the bias is taken out; the language-model head is no candidate. The
prompts are the probe's own rows, prompt and answer, so that the score stands beside the gradient
energy of the same tokens.

One forward pass without gradients through the body of the model; no head, no logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from torch import Tensor, nn

from asr.adapters.placement import LinearModule
from asr.adapters.probe.hooks import frozen_in_evaluation
from asr.data.encode import EncodedExample
from asr.errors import AdapterError

Progress = Callable[[int, int], None]


class _Sums:
    """Running sums of one module over tokens."""

    def __init__(self, frobenius: float) -> None:
        self.frobenius = frobenius
        self.inputs = 0.0  # sum of ||z_t||
        self.outputs = 0.0  # sum of ||W z_t||
        self.tokens = 0
        self.apart = False  # its tokens are not the batch's

    def score(self, d_in: int) -> float | None:
        """NFN; None where it saw other tokens than the batch's, or zeros only."""
        baseline = self.frobenius * self.inputs / math.sqrt(d_in)
        return None if self.apart or not self.tokens or not baseline else self.outputs / baseline


@torch.no_grad()
def alignment_scores(
    model: nn.Module,
    rows: Sequence[EncodedExample],
    modules: Sequence[LinearModule],
    *,
    pad_token_id: int,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[float | None]:
    """Return NFN of each module, in their order.

    None where a module does not see the batch's tokens one by one (behind a mixture-of-experts
    router, say), or sees zeros only.

    Args:
        model: the base; comes back as it was, after an exception too.
        rows: what to feed; all their tokens count.
        modules: which to score.
        pad_token_id: fills up a batch; not attended to and not counted.
        batch_size: rows together. Scores do not depend on it, up to rounding.
        progress: called with rows done and rows in all.

    Raises:
        ValueError: no rows, or a batch size below 1.
        AdapterError: a norm is not finite (names the module and what to do).
    """
    if not rows:
        raise ValueError("no rows to align with")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    found = [model.get_submodule(module.name) for module in modules]
    sums = [_Sums(_frobenius(module)) for module in found]
    body: Any = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    mask = torch.empty(0)  # (b, T), of the batch that runs; the hooks read it

    def listen(place: int) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> None:
            z = args[0] if args else next(iter(named.values()))
            _add(sums[place], module, z, output, mask)

        return hook

    # Padding takes no part, so short rows beside long ones only cost time: sort them.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    with _hooks(found, listen), frozen_in_evaluation(model):
        for begin in range(0, len(order), batch_size):
            batch = [rows[index] for index in order[begin : begin + batch_size]]
            ids, mask = _padded(batch, pad_token_id, device)
            body(input_ids=ids, attention_mask=mask, use_cache=False)
            if progress is not None:
                progress(min(begin + batch_size, len(order)), len(order))
    scores: list[float | None] = []
    for module, total in zip(modules, sums, strict=True):
        score = total.score(module.in_features)
        if score is not None and not math.isfinite(score):
            raise AdapterError(
                f"PLoP's alignment of '{module.name}' is not finite: its inputs or outputs "
                "overflow; use dtype float32 or bfloat16"
            )
        scores.append(score)
    return scores


def _add(sums: _Sums, module: nn.Module, z: Tensor, output: Tensor, mask: Tensor) -> None:
    """Add the tokens of a batch; z is (b, T, d_in) or (b T, d_in), output likewise d_out."""
    bias = getattr(module, "bias", None)
    inputs = z.reshape(-1, z.shape[-1])  # (b T, d_in)
    outputs = output.reshape(-1, output.shape[-1])  # (b T, d_out)
    if len(inputs) != mask.numel():
        sums.apart = True
        return
    kept = mask.reshape(-1).to(inputs.device).bool()
    images = outputs[kept].float()
    if bias is not None:
        images = images - bias.float()
    sums.inputs += float(inputs[kept].float().norm(dim=-1).double().sum())
    sums.outputs += float(images.norm(dim=-1).double().sum())
    sums.tokens += int(kept.sum())


def _frobenius(module: Any) -> float:
    """||W||_F of what the module computes with: 4- and 8-bit weights are unpacked.

    Weights of bitsandbytes keep away from PEFT's ``dequantize_module_weight``: on the CPU it puts
    another parameter into the module, and an 8-bit one that has run before loses its scales there.
    """
    weight = module.weight
    kind = type(weight).__name__
    if kind == "Int8Params":
        # (o,), largest magnitude of each row; the first forward pass moves it into the state
        scales = module.state.SCB if weight.SCB is None else weight.SCB
        rows = weight.detach().float().norm(dim=1) * scales.to(weight.device) / 127
        return float(rows.norm())
    if kind == "Params4bit":
        return float(dequantize_bnb_weight(weight).detach().float().norm())
    return float(dequantize_module_weight(module).detach().float().norm())


def _padded(
    batch: Sequence[EncodedExample], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, (b, T) each, padded on the right."""
    longest = max(len(row.input_ids) for row in batch)
    ids = torch.full((len(batch), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for place, row in enumerate(batch):
        ids[place, : len(row.input_ids)] = torch.tensor(row.input_ids)
        mask[place, : len(row.input_ids)] = 1
    return ids.to(device), mask.to(device)


@contextmanager
def _hooks(
    modules: Sequence[nn.Module], listen: Callable[[int], Callable[..., None]]
) -> Iterator[None]:
    handles = [
        module.register_forward_hook(listen(place), with_kwargs=True)
        for place, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
