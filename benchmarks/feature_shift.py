"""How far the router's features move with dtype, quantisation and batch mates.

    python -m benchmarks.feature_shift [--base smollm2-135m] [--prompts 64]

Pools the project's own prompts at the default router layer under each setting, and prints the
relative distance from the same prompts embedded one by one in float32: median and largest. None of
these settings is in the feature contract's hash: such shifts are recorded, and compared with the
margins when a model is loaded.
"""

from __future__ import annotations

import argparse
import gc

import numpy as np
from numpy.typing import NDArray

from asr.base.layers import default_router_layer
from asr.base.load import load_base
from asr.base.split import SplitForward
from asr.data.prompt import encode_prompt
from asr.model.features import embed
from benchmarks.interleaved import machine
from demo.domains import make_domain
from demo.forms import FULL


def features(
    name: str, count: int, dtype: str, quantisation: str | None, together: bool
) -> NDArray[np.float64]:
    """Normalised features (n, d) of the demo's test prompts."""
    base = load_base(name, dtype=dtype, quantisation=quantisation)  # type: ignore[arg-type]
    share = -(-count // len(FULL.domains))
    rows = [row for name in FULL.domains for row in make_domain(name, "test", share)]
    prompts = [
        encode_prompt(row["messages"][:1], base.tokenizer, base.template) for row in rows[:count]
    ]
    forward = SplitForward(base.model, default_router_layer(base.n_layers))
    batches = [prompts] if together else [[prompt] for prompt in prompts]
    pad = base.tokenizer.pad_token_id
    found = [embed(batch, forward, pad, base.device) for batch in batches]
    del base, forward
    gc.collect()
    pooled = np.concatenate(found).astype(np.float64)
    pooled -= pooled.mean(axis=1, keepdims=True)  # the router's LayerNorm
    return np.asarray(pooled / pooled.std(axis=1, keepdims=True))


def main() -> None:
    """Embed, compare, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    print(
        f"{options.base}; {machine()}; {options.prompts} prompts, relative to float32, one by one"
    )
    reference = features(options.base, options.prompts, "float32", None, together=False)
    for dtype, quantisation, together in (
        ("float32", None, True),
        ("bfloat16", None, False),
        ("bfloat16", None, True),
        ("bfloat16", "int8", False),
        ("bfloat16", "nf4", False),
    ):
        found = features(options.base, options.prompts, dtype, quantisation, together)
        shift = np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)
        mates = "in batches" if together else "one by one"
        print(
            f"  {dtype}{', ' + quantisation if quantisation else '':6} {mates}: "
            f"median {np.median(shift):.1e}, largest {shift.max():.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
