"""Decode after a routed prefill.

transformers prepares everything that shapes a generation (its configuration, logits processors,
stopping criteria, streamers) and hands it to :func:`decode`, which differs from its own loop in one
point: the prompt's forward pass has been run already, in two halves, with the decision between.

Notation used for tensor shapes:
    - b: batch size
    - t: prompt length, left-padded
    - v: vocabulary size
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from asr.base.split import PrefixState
from asr.errors import ConfigError


def decode(
    model: Any,
    state: PrefixState,
    first_logits: Callable[[], Tensor],
    generation_config: GenerationConfig,
    streamer: Any = None,
) -> list[list[int]]:
    """Generate from a prefix, greedily or by sampling.

    Args:
        model: the causal LM; the caller has made the rows' adapters active.
        state: the prompts' prefix.
        first_logits: runs the suffix; returns (b, 1, v) and leaves ``state.cache`` complete.
        generation_config: length, sampling, penalties and end tokens.
        streamer: a transformers streamer (batch of one), or None.

    Returns:
        New token ids per row, cut after the first end token (which is included).

    Raises:
        ConfigError: for beam search and other modes than greedy and sampling.
    """
    if (generation_config.num_beams or 1) != 1 or (generation_config.num_return_sequences or 1) != 1:
        raise ConfigError(
            f"num_beams={generation_config.num_beams} is not supported; a routed batch decodes "
            "greedily or by sampling, with num_beams=1"
        )

    def loop(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        return _loop(
            model,
            state,
            first_logits,
            logits_processor,
            stopping_criteria,
            bool(generation_config.do_sample),
            int(generation_config.pad_token_id or 0),
            streamer,
        )

    with torch.no_grad():
        sequences = model.generate(
            input_ids=state.input_ids,
            attention_mask=state.attention_mask,
            generation_config=generation_config,
            custom_generate=loop,
            streamer=streamer,
        )
    ends = end_token_ids(generation_config)
    prompt_length = state.input_ids.shape[1]
    return [_until_end(row[prompt_length:].tolist(), ends) for row in sequences]


def end_token_ids(generation_config: GenerationConfig) -> set[int]:
    """The token ids that end a generation."""
    ends = generation_config.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list | tuple) else {int(ends)}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


def _loop(
    model: Any,
    state: PrefixState,
    first_logits: Callable[[], Tensor],
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    do_sample: bool,
    pad_token_id: int,
    streamer: Any,
) -> Tensor:
    sequences = state.input_ids
    mask = state.attention_mask
    position = mask.sum(dim=1, keepdim=True)  # (b, 1): position of the next token
    unfinished = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device)
    logits = first_logits()[:, -1]
    while True:
        # float32 before the processors, as transformers does: temperatures in bfloat16 are coarse
        scores = processors(sequences, logits.float())
        if do_sample:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            token = scores.argmax(dim=-1)
        token = torch.where(unfinished, token, pad_token_id)
        sequences = torch.cat([sequences, token[:, None]], dim=1)
        if streamer is not None:
            streamer.put(token.cpu())
        unfinished &= ~criteria(sequences, scores)
        if not unfinished.any():
            break
        mask = torch.cat([mask, torch.ones_like(token)[:, None]], dim=1)
        logits = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=state.cache,
            use_cache=True,
        ).logits[:, -1]
        position = position + 1
    if streamer is not None:
        streamer.end()
    return sequences
