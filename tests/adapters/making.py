"""Adapters with random A and B, made and saved as training would save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from asr.adapters import LoraSettings, attach_for_training, detach, resolve_placement, save_adapter
from tests.tiny_models import VOCAB, tiny_model

FINGERPRINT = "ab" * 32
ROUTER_LAYER = 2


def randomise(peft_model: Any, seed: int, scale: float = 0.3) -> None:
    """Give A and B of the one attached adapter random values: it then changes every answer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def make_adapter(
    folder: Path,
    architecture: str = "llama",
    kind: Any = "deep",
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 1,
    fingerprint: str = FINGERPRINT,
    model: Any = None,
) -> Path:
    """Write an adapter of random tensors for the tiny model of ``architecture`` (seed 0)."""
    model = model or tiny_model(architecture)
    placement = resolve_placement(model, kind, ROUTER_LAYER)
    peft_model = attach_for_training(model, placement, LoraSettings(rank, alpha), "tiny", seed)
    randomise(peft_model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(
        peft_model, folder, domain=folder.name, fingerprint=fingerprint, facts={"seed": seed}
    )
    detach(peft_model)
    return folder


def batch(rows: int = 4, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded token ids and mask, row i with ``2 * i`` tokens of padding."""
    ids = torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    return ids.where(mask.bool(), torch.zeros_like(ids)), mask


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(b, t, v) logits; those at padding are zeroed, they mean nothing."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return out * mask.unsqueeze(-1)
