"""How an answer is generated: the fields of a request, and what the engine gets.

Without ``temperature`` answers are greedy, where OpenAI's default is 1: adapters are evaluated
greedily, and the same question should get the same answer unless variety was asked for. Where
``top_p``, ``top_k`` or ``min_p`` ask for it, the default is OpenAI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from asr.serve.api.errors import ApiError
from asr.serve.api.fields import Name, Strict, at_most
from asr.serve.request import Sampling

Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
MaxTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]

TEMPERATURE = (
    "0 takes the likeliest token. Default 0, and 1 where top_p, top_k or min_p ask for sampling."
)
MODEL = (
    "auto (the default) lets the router choose, a domain's name or base is used as given. "
    "GET /v1/models lists what there is."
)


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = Field(
        None, description="End with a chunk that has no choices and the usage."
    )
    include_obfuscation: Literal[False] | None = None


class SamplingFields(Strict):
    """What chats and raw completions have in common."""

    model: Name | None = Field(None, description=MODEL)
    temperature: Temperature | None = Field(None, description=TEMPERATURE)
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Number of tokens kept; 0 keeps all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=1024, json_schema_extra={"additionalProperties": False}),
            at_most(1024),
        ]
        | None
    ) = Field(None, description="Added to the logits of token ids.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = Field(
        None, description="Texts that end the answer; up to 16."
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = Field(None, description="Number of answers.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted, without effect on the answer.")
    ignore_eos: bool | None = Field(
        None, description="Go on past the model's end of turn, for measurements."
    )


def samplings(
    body: SamplingFields, max_tokens: int, top_logprobs: int | None, vocabulary: int
) -> list[Sampling]:
    """Return how each of the ``n`` answers is generated: alike, but for their seeds.

    Args:
        body: the request.
        max_tokens: longest answer.
        top_logprobs: see :class:`asr.serve.request.Sampling`.
        vocabulary: number of token ids.

    Raises:
        ApiError: 400, ``stream_options`` without ``stream``, or a bias on a token that does not
            exist.
    """
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "stream_options is for streams; set stream to true", param="stream_options"
        )
    bias = []
    for key, value in (body.logit_bias or {}).items():
        if int(key) >= vocabulary:
            raise ApiError(
                400,
                f"logit_bias names the token {key}; token ids go from 0 to {vocabulary - 1}",
                param="logit_bias",
            )
        bias.append((int(key), float(value)))
    shared: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature(body.temperature, body.top_p, body.top_k, body.min_p),
        "top_p": _or(body.top_p, 1.0),
        "top_k": _or(body.top_k, 0),
        "min_p": _or(body.min_p, 0.0),
        "repetition_penalty": _or(body.repetition_penalty, 1.0),
        "presence_penalty": _or(body.presence_penalty, 0.0),
        "frequency_penalty": _or(body.frequency_penalty, 0.0),
        "logit_bias": tuple(bias),
        "stop": stops(body.stop),
        "top_logprobs": top_logprobs,
        "ignore_end": bool(body.ignore_eos),
    }
    return [Sampling(**shared, seed=_seed(body.seed, index)) for index in range(body.n or 1)]


def temperature(
    given: float | None, top_p: float | None, top_k: int | None = None, min_p: float | None = None
) -> float:
    """Return the temperature; see the module for its default."""
    if given is not None:
        return given
    sampled = _or(top_p, 1.0) < 1 or _or(top_k, 0) > 0 or _or(min_p, 0.0) > 0
    return 1.0 if sampled else 0.0


def stops(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop texts as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def _seed(seed: int | None, index: int) -> int | None:
    """Return the seed of a choice; within 64 bits, as the first one is."""
    return None if seed is None else (seed + index + 2**63) % 2**64 - 2**63


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
