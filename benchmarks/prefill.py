"""What routing costs inside a prefill, and what splitting the forward pass costs.

Run as:  python -m benchmarks.prefill [--base smollm2-135m] [--batch 8] [--length 128 256]

Prints, interleaved in one run: the plain forward, the split forward without routing, and the routed
prefill (prefix, pool, feature map, scores, decision, suffix); the share that pooling and deciding
take of the routed prefill; and the largest difference of logits between split and plain (0 means
bit-equal). The router has eight domains and no expansion, or the one given with --expansion.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from asr.base.layers import default_router_layer
from asr.base.load import load_base
from asr.base.split import SplitForward, position_ids_of
from asr.data.prompt import EncodedPrompt
from asr.model.features import pool
from asr.router import (
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
)
from benchmarks.interleaved import interleave, machine

DOMAINS = 8


def random_router(hidden_size: int, expansion: int) -> Router:
    """A router over ``DOMAINS`` well separated clouds of random features."""
    generator = np.random.Generator(np.random.Philox(0))
    feature_map = FeatureMap(hidden_size, expansion)
    domains = []
    for index in range(DOMAINS):
        centre = generator.standard_normal(hidden_size)
        pooled = centre + 0.5 * generator.standard_normal((64, 1, hidden_size))
        held_out = centre + 0.5 * generator.standard_normal((64, 1, hidden_size))
        statistics = DomainStatistics(feature_map.dimension).update(feature_map(pooled))
        block = CalibrationBlock(held_out, ("templated",))
        domains.append(RoutingDomain(f"domain{index}", statistics, block))
    return Router.fit(domains, RouterSettings(expansion=expansion), feature_map)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="default: smollm2-135m")
    parser.add_argument("--batch", type=int, default=8, help="prompts at once; default: 8")
    parser.add_argument(
        "--length", type=int, nargs="+", default=[128, 256], help="in tokens; default: 128 256"
    )
    parser.add_argument("--expansion", type=int, default=0, help="of the features; default: none")
    parser.add_argument("--rounds", type=int, default=15, help="timed of each; default: 15")
    args = parser.parse_args()

    base = load_base(args.base)
    layer = default_router_layer(base.n_layers)
    split = SplitForward(base.model, layer)
    router = random_router(base.hidden_size, args.expansion)
    print(f"{args.base}, {base.note}; router layer {layer} of {base.n_layers}")
    print(f"{machine()}; batch {args.batch}, {args.rounds} rounds, medians")
    for length in args.length:
        measure(base.model, split, router, args.batch, length, args.rounds)


def measure(
    model: torch.nn.Module,
    split: SplitForward,
    router: Router,
    batch: int,
    length: int,
    rounds: int,
) -> None:
    """Time one prompt length and print its lines."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(model.device)
    mask = torch.ones_like(ids)
    prompts = [EncodedPrompt([0] * length, [False] * 4 + [True] * (length - 4))] * batch
    routing: list[float] = []

    @torch.no_grad()
    def plain() -> torch.Tensor:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids_of(mask),
            past_key_values=split.new_cache(),
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits

    def split_only() -> torch.Tensor:
        return split.suffix(split.prefix(ids, mask), 1)

    def routed() -> torch.Tensor:
        state = split.prefix(ids, mask)
        began = time.perf_counter()
        router.decide(pool(state.hidden, prompts))
        routing.append(time.perf_counter() - began)
        return split.suffix(state, 1)

    difference = (plain().float() - split_only().float()).abs().max().item()
    timings = interleave({"plain": plain, "split": split_only, "routed": routed}, rounds, warmup=2)
    share = float(np.median(routing[2:])) / timings["routed"].median
    base = timings["plain"].median
    print(
        f"length {length}: plain {base * 1e3:.1f} ms; split {timings['split'].median / base:.3f}x; "
        f"routed {timings['routed'].median / base:.3f}x; deciding takes {share:.2%} of the routed "
        f"prefill; largest logit difference split - plain: {difference:g}"
    )


if __name__ == "__main__":
    main()
