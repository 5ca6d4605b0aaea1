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

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from asr.base.split import PrefixState, keeps_recurrent_states
from asr.errors import ConfigError, did_you_mean


def decode(
    model: Any,
    state: PrefixState,
    first_logits: Callable[[], Tensor],
    generation_config: GenerationConfig,
    streamer: Any = None,
    keep_rows: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Generate from a prefix, greedily or by sampling.

    Rows that have ended leave the batch when a quarter of it has: one long answer then costs a
    batch of one, not of all.

    Args:
        model: the causal LM; the caller has made the rows' adapters active.
        state: the prompts' prefix.
        first_logits: runs the suffix; returns (b, 1, v) and leaves ``state.cache`` complete.
        generation_config: length, sampling, penalties and end tokens.
        streamer: a transformers streamer (batch of one), or None; it gets the prompt first.
        keep_rows: told which rows of the running batch stay when others leave it; without it none
            does.

    Returns:
        New token ids per row, cut after the first end token (which is included).

    Raises:
        ConfigError: for beam search and other modes than greedy and sampling.
    """
    _require_one_sequence(generation_config)

    def loop(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
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
            keep_rows,
        )

    if streamer is not None:
        streamer.put(state.input_ids.cpu())
    # generate does not hand a streamer on to a loop of the caller's: ours has it from here
    with torch.no_grad():
        sequences = model.generate(
            input_ids=state.input_ids,
            attention_mask=state.attention_mask,
            generation_config=generation_config,
            custom_generate=loop,
        )
    ends = end_token_ids(generation_config)
    prompt_length = state.input_ids.shape[1]
    return [_until_end(row[prompt_length:].tolist(), ends) for row in sequences]


def generation_settings(defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> GenerationConfig:
    """A ``GenerationConfig`` from our fields and the caller's, the caller's winning.

    A field that the caller sets to None keeps its default.

    Raises:
        ConfigError: a field that does not exist (transformers would keep it and do nothing), a
            value out of range, a field of sampling where nothing is sampled, or a mode other than
            greedy and sampling.
    """
    plain = GenerationConfig()
    known = [name for name in vars(plain) if not name.startswith("_")]
    for name, value in fields.items():
        if name not in known:
            raise ConfigError(
                f"unknown generation setting '{name}'{did_you_mean(name, known)}; fields of "
                "transformers' GenerationConfig are accepted"
            )
        if name in _UNFOLLOWED and value is not None and value != getattr(plain, name):
            raise ConfigError(f"{name}={value!r} is not supported; leave {name} out")
        if name in _RANGES and value is not None:
            low, high, kind = _RANGES[name]
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:
                raise ConfigError(
                    f"{name}={value!r} is out of range; give a "
                    f"{'whole ' if kind is int else ''}number from {low:g}"
                    + (f" to {high:g}" if high < math.inf else " up")
                )
    given = {name: value for name, value in fields.items() if value is not None}
    config = GenerationConfig(**{**defaults, **given})
    if not config.do_sample and (idle := [name for name in _OF_SAMPLING if name in given]):
        raise ConfigError(
            f"{idle[0]}={given[idle[0]]!r} does nothing without do_sample=True; add it, or leave "
            f"{idle[0]} out"
        )
    _require_one_sequence(config)
    return config


_COMPACT_AT = 0.75
"""Share of the batch's rows still running at which the others leave it."""

_SMALLEST = 1e-4
_RANGES: dict[str, tuple[float, float, Any]] = {
    "temperature": (_SMALLEST, math.inf, int | float),
    "top_p": (_SMALLEST, 1.0, int | float),
    "top_k": (0, math.inf, int),
    "min_p": (0.0, 1.0, int | float),
    "repetition_penalty": (_SMALLEST, math.inf, int | float),
    "no_repeat_ngram_size": (0, math.inf, int),
    "min_new_tokens": (0, math.inf, int),
}
_UNFOLLOWED = (
    # other ways to decode than our loop's two, which would be left out without a word
    *("num_beam_groups", "penalty_alpha", "dola_layers", "constraints", "force_words_ids"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "is_assistant", "use_cache"),
    *("cache_implementation", "cache_config", "compile_config"),
    # lengths that count the prompt and its padding: max_new_tokens and min_new_tokens do not
    *("max_length", "min_length"),
    # need the tokenizer, or keep state of their own for rows that leave our batch when they end
    *("stop_strings", "token_healing", "guidance_scale"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),
)
"""Fields of ``GenerationConfig`` that :func:`decode` cannot follow."""
_OF_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "top_h"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff"),
)


def _require_one_sequence(config: GenerationConfig) -> None:
    for name in ("num_beams", "num_return_sequences"):
        value = getattr(config, name, None)
        if (value or 1) != 1:
            raise ConfigError(
                f"{name}={value} is not supported; a routed batch decodes greedily or by sampling, "
                f"one answer per prompt, with {name}=1"
            )


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
    keep_rows: Callable[[list[int]], None] | None,
) -> Tensor:
    sequences: Any = state.input_ids
    mask = state.attention_mask
    position = mask.sum(dim=1, keepdim=True)  # (b, 1): position of the next token
    unfinished = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device)
    rows = torch.arange(len(sequences), device=sequences.device)  # of the batch as it was given
    ended: dict[int, Tensor] = {}
    logits = first_logits()[:, -1]
    if not hasattr(state.cache, "batch_select_indices") or keeps_recurrent_states(state.cache):
        keep_rows = None  # nobody can leave
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
        left = int(unfinished.sum())
        if left == 0:
            break
        mask = torch.cat([mask, torch.ones_like(token)[:, None]], dim=1)
        if keep_rows is not None and left <= _COMPACT_AT * len(rows):
            for place in (~unfinished).nonzero().squeeze(1).tolist():
                ended[int(rows[place])] = sequences[place]
            staying = unfinished.nonzero().squeeze(1)
            state.cache.batch_select_indices(staying)
            keep_rows(staying.tolist())
            sequences, mask, position, token, rows, unfinished = (
                tensor[staying] for tensor in (sequences, mask, position, token, rows, unfinished)
            )
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
    ended.update(zip(rows.tolist(), sequences, strict=True))
    length = sequences.shape[1]
    return torch.stack(
        [
            functional.pad(ended[i], (0, length - len(ended[i])), value=pad_token_id)
            for i in sorted(ended)
        ]
    )
