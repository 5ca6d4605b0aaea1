"""What the gradient probe costs on a base of a billion parameters: time and peak memory.

The base has the shape of Llama-3.2-1B (its published config) and random weights, which costs
nothing but their making; it is loaded as any base is, in bfloat16 and in nf4. Compared, as in
:mod:`benchmarks.page_cost`, are forward and input-gradient backward without any hook, the probe,
and (where weights can have gradients) the same backward with every weight trainable. In a
rehearsal, a base of the same kind a hundred times smaller.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from asr.base.device import choose_device
from asr.base.load import load_base
from asr.base.resolve import resolve_base
from benchmarks.gpu.parts import Part
from benchmarks.interleaved import interleave
from benchmarks.page_cost import peak, random_rows, sides

LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SMALL = LLAMA_1B | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
LENGTHS = (256, 512)
ANSWER = 32
BATCH = 8
QUANTISATIONS = (None, "nf4")


def run(part: Part) -> None:
    """Measure both types of weights, one after the other."""
    shape = SMALL if part.options.rehearse else LLAMA_1B
    rounds = 1 if part.options.rehearse else 7
    folder = part.work / "base"
    write_base(folder, shape, part.options.base)
    part.say(f"made a base of {shape['hidden_size']} channels, {shape['num_hidden_layers']} layers")
    settings: dict[str, Any] = {"shape": shape, "batch": BATCH, "supervised": ANSWER}
    settings |= {"rounds": rounds, "lengths": LENGTHS, "dtype": "bfloat16"}
    figures: list[dict[str, Any]] = []
    longest = 0.0
    for quantisation in QUANTISATIONS:
        base = load_base(str(folder), dtype="bfloat16", quantisation=quantisation, say=part.say)
        for length in LENGTHS:
            if part.left < longest:
                part.say("no time left")
                return
            began = part.spent
            rows = random_rows(base, BATCH, length, ANSWER)
            compared = sides(base, rows)
            if quantisation is not None:
                del compared["naive"]  # quantised weights have no gradient
            timings = interleave(compared, rounds)
            least = timings["backward"].median
            found: dict[str, Any] = {"weights": quantisation or "bfloat16", "length": length}
            for name, timing in timings.items():
                before, top = peak(compared[name]) if base.device.type == "cuda" else (None, None)
                found[name] = {
                    "seconds": round(timing.median, 5),
                    "fastest": round(timing.fastest, 5),
                    "slowest": round(timing.slowest, 5),
                    "ratio": round(timing.median / least, 4),
                    "bytes_before": before,
                    "bytes_peak": top,
                }
            figures.append(found)
            part.say(line_of(found, list(timings)))
            longest = max(longest, part.spent - began)
            part.save(
                len(figures) == len(QUANTISATIONS) * len(LENGTHS),
                settings=settings,
                figures=figures,
            )
        del base, compared
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def write_base(folder: Path, shape: dict[str, Any], tokenizer: str) -> None:
    """Write a base of random weights with the tokenizer (and chat template) of another."""
    config = LlamaConfig(
        **shape, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, pad_token_id=0
    )
    torch.manual_seed(0)
    with torch.device(choose_device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_base(tokenizer).path).save_pretrained(folder)


def line_of(found: dict[str, Any], names: list[str]) -> str:
    """One case, for people."""
    parts = []
    for name in names:
        side = found[name]
        memory = (
            "" if side["bytes_peak"] is None else f", peak {side['bytes_peak'] / 2**20:.0f} MiB"
        )
        parts.append(f"{name} {1000 * side['seconds']:.1f} ms ({side['ratio']:.3f}x{memory})")
    return f"{found['weights']}, length {found['length']}: " + "; ".join(parts)
