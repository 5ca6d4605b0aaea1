"""Tiny models whose widths are multiples of 64: what 4-bit blocks need on the CPU."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from tests import tiny_models

WIDTH = 64


def save_wide_base(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """As :func:`tests.tiny_models.save_tiny_base`, twice as wide."""
    make = tiny_models.ARCHITECTURES[architecture]
    wide = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "ffn_dim": 2 * WIDTH}
    wide |= {"word_embed_proj_dim": WIDTH, "n_embd": WIDTH, "head_dim": WIDTH // 4}

    def widened():
        values = make().to_dict()
        return type(make())(**{**values, **{k: v for k, v in wide.items() if k in values}})

    with patch.dict(tiny_models.ARCHITECTURES, {architecture: widened}):
        return tiny_models.save_tiny_base(folder, architecture, seed)
