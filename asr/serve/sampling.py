"""Choosing the next token of each row of a running batch.

Every row has a :class:`Sampler` of its own: transformers' logits processors, in the order that
``generate`` puts them, and a random generator that no other row draws from, so that a seed gives
the same answer whatever else is in the batch. Rows that take the likeliest token, which most do,
share one argmax.

This file knows logits and token ids; it knows neither a tokenizer nor when an answer is over.

Notation used for tensor shapes:
    - b: rows of the running batch
    - v: vocabulary size
    - n: tokens of prompt and answer so far
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from asr.errors import ConfigError
from asr.serve.request import Sampling, TokenLogprob

SMALLEST_TEMPERATURE = 1e-5
"""Below, the likeliest token is taken: logits divided by less leave the range of float32."""


class InvalidLogitsError(Exception):
    """A row's logits are no distribution (NaN, infinite, or nothing left to choose from)."""


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities at one position, from the logits as the model gave them.

    Attributes:
        logprob: of the chosen token.
        top: (id, logprob) of the likeliest tokens, likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chosen:
    """A chosen token, with its log-probabilities where the row asks for them."""

    token: int
    logprobs: Logprobs | None = None

    def reported(self, decode: Callable[[int], str]) -> TokenLogprob | None:
        """What is reported of it, None where nothing was asked; ``decode`` gives a token's text."""
        if self.logprobs is None:
            return None
        top = tuple((token, decode(token), logprob) for token, logprob in self.logprobs.top)
        return TokenLogprob(self.token, decode(self.token), self.logprobs.logprob, top)


class AnswerPenaltyLogitsProcessor(LogitsProcessor):
    """The presence and frequency penalties as OpenAI's API defines them.

    A token that stands in the answer c > 0 times has its logit lowered by
    ``presence + c * frequency``. The prompt does not count. (transformers has a processor for the
    repetition penalty only, which is a factor and counts the prompt.)

    Args:
        presence: taken off once.
        frequency: taken off per occurrence.
        prompt_length: leading tokens that do not count.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self.presence = presence
        self.frequency = frequency
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (b, v) less the penalties; ``input_ids`` is (b, n)."""
        answer = input_ids[:, self.prompt_length :]
        ones = torch.ones_like(answer, dtype=scores.dtype)
        counts = torch.zeros_like(scores).scatter_add_(1, answer, ones)
        return scores - self.frequency * counts - self.presence * (counts > 0)


class Sampler:
    """How one row's tokens are chosen, and those chosen so far.

    Args:
        sampling: the request's settings, in their ranges.
        prompt_ids: token ids of the prompt, which the repetition penalty counts.
        vocabulary_size: number of logits of a row.
        end_ids: tokens that end an answer.

    Attributes:
        generated: ids chosen so far.
        seed: of the draws; drawn itself where the request names none.
        is_greedy: whether the choice is the plain argmax of the logits as they are.
        top_logprobs: how many likeliest tokens are reported, None for no log-probabilities.

    Raises:
        ConfigError: ``logit_bias`` names a token that does not exist.
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        vocabulary_size: int,
        end_ids: Sequence[int],
    ) -> None:
        strangers = [token for token, _ in sampling.logit_bias if not 0 <= token < vocabulary_size]
        if strangers:
            raise ConfigError(
                f"logit_bias names token {strangers[0]}, but token ids go from 0 to "
                f"{vocabulary_size - 1}; leave it out"
            )
        self.generated: list[int] = []
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.top_logprobs = sampling.top_logprobs
        self._end_ids = frozenset() if sampling.ignore_end else frozenset(end_ids)
        self._is_random = sampling.temperature >= SMALLEST_TEMPERATURE
        self._processors = _processors(sampling, len(prompt_ids), self._is_random)
        self.is_greedy = not self._is_random and not self._processors
        # Only penalties look at the tokens so far.
        self._needs_ids = any(
            isinstance(one, RepetitionPenaltyLogitsProcessor | AnswerPenaltyLogitsProcessor)
            for one in self._processors
        )
        self._ids: Any = torch.tensor(
            [list(prompt_ids) if self._needs_ids else []], dtype=torch.long
        )
        # On the CPU, whatever the model is on: devices draw differently from one seed.
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def ended(self) -> bool:
        """Whether the last token ended the answer."""
        return bool(self.generated) and self.generated[-1] in self._end_ids

    def choose(self, logits_row: Tensor) -> int:
        """Choose the next token of logits (v,) and keep it.

        Raises:
            InvalidLogitsError: the logits are no distribution; nothing is drawn or kept then.
        """
        # float32 before the processors, as transformers does: temperatures in bfloat16 are coarse
        scores = self._processors(self._ids, logits_row.float().cpu()[None])
        best, token = scores.max(dim=-1)  # NaN is the maximum where there is one
        if not best.isfinite():
            raise InvalidLogitsError(f"the largest logit of a row is {float(best)}")
        if self._is_random:
            token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)[0]
        chosen = int(token)
        self.keep(chosen)
        return chosen

    def keep(self, token: int) -> None:
        """Add a token that was chosen elsewhere (an argmax over several rows) to the answer."""
        self.generated.append(token)
        if self._needs_ids:
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)


def choose_tokens(logits: Tensor, samplers: Sequence[Sampler]) -> list[Chosen | InvalidLogitsError]:
    """Choose the next token of every row, and keep it in the row's sampler.

    Args:
        logits: (b, v), of any floating type, on any device.
        samplers: one per row.

    Returns:
        Per row its token; an error in its place where the row's logits are no distribution. The
        other rows are none the worse for it.

    Raises:
        ValueError: there are not as many samplers as rows.
    """
    best, likeliest = logits.max(dim=-1)  # NaN is the maximum where there is one
    finite, greedy = best.isfinite().tolist(), likeliest.tolist()
    # One copy to the CPU for all rows that need their logits there.
    others = [row for row, sampler in enumerate(samplers) if not sampler.is_greedy]
    copied = dict(zip(others, logits[others].float().cpu(), strict=True)) if others else {}
    chosen: list[int | InvalidLogitsError] = []
    for row, (sampler, is_finite) in enumerate(zip(samplers, finite, strict=True)):
        if not is_finite:
            chosen.append(InvalidLogitsError(f"the largest logit of a row is {float(best[row])}"))
        elif sampler.is_greedy:
            sampler.keep(greedy[row])
            chosen.append(greedy[row])
        else:
            try:
                chosen.append(sampler.choose(copied[row]))
            except InvalidLogitsError as error:
                chosen.append(error)
    asked = [
        (row, token, samplers[row].top_logprobs or 0)
        for row, token in enumerate(chosen)
        if isinstance(token, int) and samplers[row].top_logprobs is not None
    ]
    logprobs = _logprobs(logits, asked)
    return [
        Chosen(token, logprobs.get(row)) if isinstance(token, int) else token
        for row, token in enumerate(chosen)
    ]


def _processors(sampling: Sampling, prompt_length: int, is_random: bool) -> LogitsProcessorList:
    """Make the processors that do something, in the order of ``generate``."""
    made = LogitsProcessorList()
    if sampling.logit_bias:
        bias: list[list[list[int] | float]]
        bias = [[[token], float(value)] for token, value in sampling.logit_bias]
        made.append(SequenceBiasLogitsProcessor(bias))
    if sampling.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    if presence or frequency:
        made.append(AnswerPenaltyLogitsProcessor(presence, frequency, prompt_length))
    if not is_random:
        return made
    if sampling.temperature != 1:
        made.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        made.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        made.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        made.append(MinPLogitsWarper(sampling.min_p))
    return made


def _logprobs(logits: Tensor, asked: Sequence[tuple[int, int, int]]) -> dict[int, Logprobs]:
    """Return what (row, chosen token, number of likeliest) ask for, by row."""
    if not asked:
        return {}
    rows, tokens, numbers = (list(column) for column in zip(*asked, strict=True))
    every = logits[rows].float().log_softmax(dim=-1)
    own = every.gather(1, torch.tensor(tokens, device=every.device)[:, None])[:, 0].tolist()
    values, ids = every.topk(min(max(numbers), every.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return {
        row: Logprobs(logprob, tuple(zip(top_ids[:number], top_values[:number], strict=True)))
        for row, logprob, number, (top_ids, top_values) in zip(
            rows, own, numbers, tops, strict=True
        )
    }
