"""Training tokens per second beside plain PEFT and the plain Trainer, on the GPU.

What :mod:`benchmarks.train_throughput` measures, for two placements and two batch sizes.
"""

from __future__ import annotations

from typing import Any

from asr.base.load import load_base
from asr.data.encode import encode_examples
from asr.data.formats import Example
from benchmarks.gpu.parts import Part
from benchmarks.train_throughput import compare
from demo.domains import make_domain

CASES = (("deep", 4), ("deep", 16), ("all", 4))
"""Placement and batch size."""


def run(part: Part) -> None:
    """Measure one case after the other, while the next one should fit the time."""
    base = load_base(part.options.base, say=part.say)
    raw = make_domain("triage", "train", 400)
    examples = tuple(Example(tuple(row["messages"]), {}, "demo") for row in raw)
    rows = encode_examples(examples, base.tokenizer, base.template, 512).rows
    steps, rounds = (2, 1) if part.options.rehearse else (16, 2)
    settings = {"base": part.options.base, "dtype": base.dtype_name, "steps": steps}
    settings |= {"rounds": rounds, "base_note": base.note, "cases": [list(case) for case in CASES]}
    figures: list[dict[str, Any]] = []
    longest = 0.0
    for kind, batch in CASES:
        if part.left < longest:
            part.say(f"no time for {kind}, batch {batch}")
            break
        began = part.spent
        part.say(f"placement {kind}, batch {batch}")
        figures.append(compare(base, rows, kind, batch, steps, rounds))
        longest = max(longest, part.spent - began)
        part.save(len(figures) == len(CASES), settings=settings, figures=figures)
