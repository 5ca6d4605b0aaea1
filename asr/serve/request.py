"""What the engine is asked and what it answers: data between the HTTP side and the worker.

The HTTP side renders and tokenises a request, checks it, and hands over a :class:`ServeRequest`.
The worker answers with events, in this order: one :class:`Routed`, any number of :class:`Piece`,
and one :class:`Finished`; or, at any point, one :class:`Failed` and nothing after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from asr.data.prompt import EncodedPrompt
from asr.router import Decision

RouteKind = Literal["auto", "named", "abstained"]
FinishReason = Literal["stop", "length", "cancelled"]
FailureKind = Literal["unknown_model", "too_long", "adapter", "closing", "internal"]


@dataclass(frozen=True)
class Sampling:
    """How one answer is generated.

    Attributes:
        max_tokens: most tokens to generate, 1 or more.
        temperature: 0 takes the likeliest token; above, samples.
        top_p: share of the probability kept, in (0, 1].
        top_k: number of tokens kept; 0 keeps all.
        min_p: share of the likeliest token's probability that a kept token has at least, in [0, 1].
        repetition_penalty: factor on tokens of prompt and answer, above 0; 1 does nothing.
        presence_penalty: taken off once from every token of the answer so far, in [-2, 2].
        frequency_penalty: taken off per occurrence in the answer so far, in [-2, 2].
        logit_bias: added to the logits of single token ids, each in [-100, 100].
        stop: texts that end the answer; none of them is part of it.
        seed: of the sampling; None draws one.
        top_logprobs: None reports no log-probabilities; n reports those of the chosen token and of
            the n likeliest.
        ignore_end: go on past the model's end of turn (for measurements).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    ignore_end: bool = False


@dataclass(frozen=True)
class ServeRequest:
    """One answer that is wanted.

    Attributes:
        prompt: token ids, and which of them are the user's words.
        model: ``auto``, ``base`` or a domain's name.
        sampling: how to generate.
        opening: text that the chat template itself writes before an answer, left out of it; empty
            for raw completions.
    """

    prompt: EncodedPrompt
    model: str
    sampling: Sampling
    opening: str = ""


@dataclass(frozen=True)
class Route:
    """Where a request goes.

    Attributes:
        adapter: the domain that answers, or ``base``.
        kind: ``auto`` (the router chose a domain), ``abstained`` (the router chose the base) or
            ``named`` (the request did).
        decision: the router's decision; None for a named adapter.
    """

    adapter: str
    kind: RouteKind
    decision: Decision | None


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token with its log-probability under the processed logits' raw softmax.

    Attributes:
        token: id.
        text: what it decodes to, alone.
        logprob: natural logarithm of its probability, before temperature and penalties.
        top: (id, text, logprob) of the likeliest tokens, likeliest first.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Routed:
    """The decision, before the first token."""

    route: Route


@dataclass(frozen=True)
class Piece:
    """A piece of the answer; the texts of all pieces together are the answer.

    ``tokens`` is the number of new tokens since the last piece: their text may be held back until
    the next one (half a character, the beginning of a stop text).
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        prompt_tokens: of the prompt.
        completion_tokens: generated, the end token included.
        cached_tokens: prompt tokens whose deep states came from the prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """Seconds of one answer.

    Attributes:
        queued: from submission to the first forward pass.
        first_token: from submission to the first token.
        total: from submission to the end.
    """

    queued: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    usage: Usage
    timing: Timing
    stop: str | None = None
    """The stop text that ended it, if one did."""


@dataclass(frozen=True)
class Failed:
    """The end of a request that could not be answered.

    Attributes:
        kind: what went wrong, for the status code.
        message: one line that may be shown; ``internal`` says nothing of the inside.
    """

    kind: FailureKind
    message: str


Event = Routed | Piece | Finished | Failed


@dataclass(frozen=True)
class ServedModel:
    """The domains that are served now: one consistent view of a model directory.

    Attributes:
        domains: names that can be asked for, in training order.
        created: Unix time at which each domain's adapter was trained, by name (0 if unknown).
        base_name: the base as training named it.
        generation: counts reloads of the directory, from 1.
    """

    domains: tuple[str, ...]
    base_name: str
    created: dict[str, int] = field(default_factory=dict)
    generation: int = 1


@dataclass(frozen=True)
class EngineStatus:
    """The engine at one moment.

    Attributes:
        running: rows in the running batch.
        waiting: requests that have no row yet.
        resident: adapters in memory, by domain.
        resident_bytes: their size.
        budget_bytes: most bytes of adapters kept.
        evictions: adapters dropped for others so far.
        loads: adapters read from disk so far.
        cache_bytes: size of the prefix caches.
        cache_hits: requests that took states from them so far.
        steps: decode steps so far.
        step_rows: rows summed over those steps (the mean batch is ``step_rows / steps``).
        ready: whether requests are accepted.
    """

    running: int
    waiting: int
    resident: tuple[str, ...]
    resident_bytes: int
    budget_bytes: int
    evictions: int
    loads: int
    cache_bytes: int
    cache_hits: int
    steps: int
    step_rows: int
    ready: bool
