"""Pooled states of several layers in one pass.

Notation: n prompts, V views, l layers read, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asr.base.load import LoadedBase
from asr.data.prompt import encode_prompt
from asr.model.features import Forward, batches_by_length, pad_left, pool
from asr.model.opening import make_forward
from asr.router import FeatureMap
from benchmarks.routing_prompts import Prompt


def embed_layers(
    base: LoadedBase,
    layers: Sequence[int],
    prompts: Sequence[Prompt],
    forward: Forward | None = None,
    max_length: int = 1024,
) -> np.ndarray:
    """Mean of the user's tokens as they enter each of ``layers``: (n, l, d) float32.

    ``forward`` is the split forward at the deepest of them; made here where it is not given.
    """
    deepest = max(layers)
    forward = forward or make_forward(base, deepest, False)
    encoded = [
        encode_prompt(prompt, base.tokenizer, base.template, max_length, shorten=True)
        for prompt in prompts
    ]
    entering: dict[int, Any] = {}

    def keep(layer: int) -> Any:
        def hook(_module: object, args: Any, kwargs: Any) -> None:
            entering[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    modules = base.decoder.modules
    handles = [
        modules[layer].register_forward_pre_hook(keep(layer), with_kwargs=True)
        for layer in layers
        if layer != deepest
    ]
    made = np.zeros((len(prompts), len(layers), base.hidden_size), dtype=np.float32)
    try:
        for batch in batches_by_length([len(prompt.input_ids) for prompt in encoded]):
            chosen = [encoded[index] for index in batch]
            rows = [prompt.input_ids for prompt in chosen]
            ids, mask = pad_left(rows, base.tokenizer.pad_token_id, base.device)
            entering[deepest] = forward.prefix(ids, mask).hidden
            made[batch] = np.stack([pool(entering[layer], chosen) for layer in layers], axis=1)
    finally:
        for handle in handles:
            handle.remove()
    return made


def side_by_side(states: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Join layers: (n, V, l, d) to (n, V, len(chosen) d), each layer normalised on its own."""
    picked = states[:, :, list(chosen)]
    if len(chosen) > 1:
        picked = FeatureMap(states.shape[-1]).normalise(picked).astype(np.float32)
    return picked.reshape(*picked.shape[:2], len(chosen) * states.shape[-1])
