"""What an adapter costs in generation, by where it sits.

    python -m benchmarks.placement_decode [--probe probe.json] [--batch 8] [--tokens 24]

The placements of :mod:`benchmarks.placement`, each with a fresh adapter in the base's type, against
the bare base in the same loop (transformers' generate), in turn. The forward pass is PEFT's. Times
are processor seconds, which neighbours on a shared machine disturb least; run it on one thread
(OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asr.adapters import LoraSettings, attach_for_training, detach, resolve_placement
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase, load_base
from asr.base.quiet import quiet_libraries
from benchmarks.interleaved import machine
from benchmarks.placement import Arm, arms


def decode_cost(
    base: LoadedBase, chosen: Sequence[Arm], batch: int, tokens: int, rounds: int
) -> None:
    """Time generation with each placement's (fresh) adapter against the bare base, in turn."""
    layer = default_router_layer(base.n_layers)
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(5, vocabulary, (batch, 32), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in ("base", *(a.name for a in chosen))}

    def generate(model: Any) -> float:
        began = time.process_time()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=base.tokenizer.pad_token_id,
            )
        return time.process_time() - began

    for turn in range(rounds + 1):  # the first one warms up
        taken = {"base": generate(base.model)}
        for arm in chosen:
            placement = resolve_placement(base.model, arm.adapter.get("placement", "deep"), layer)
            settings = LoraSettings(rank=arm.adapter["rank"])
            with quiet_libraries():
                model = attach_for_training(base.model, placement, settings, base.name, seed=0)
            model.eval().to(base.dtype)
            taken[arm.name] = generate(model)
            detach(model)
        for name, spent in taken.items():
            seconds[name] += [spent] if turn else []
    bare = statistics.median(seconds["base"])
    print(
        f"prefill of 32 and {tokens} new tokens, batch {batch}, medians of {rounds}, PEFT's forward"
    )
    for name, spent in seconds.items():
        middle = statistics.median(spent)
        print(f"  {name:16} {middle:6.2f} s, {middle / bare:.2f}x the bare base")


def main() -> None:
    """Time generation with every placement."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--probe", type=Path, help="probe.json of asr probe")
    parser.add_argument("--rank", type=int, default=16, help="of the single modules")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    base = load_base(options.base)
    print(f"{options.base}, {base.note}; {machine()}", flush=True)
    chosen = arms(base, options.probe, options.rank)
    decode_cost(base, chosen, options.batch, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
