"""``POST /v1/completions``: raw prompts, tokenised as they are, without the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from asr.serve.api import outgoing
from asr.serve.api.answers import Answers, Whole
from asr.serve.api.documented import answering
from asr.serve.api.prompts import encode_text, room_for, served_model
from asr.serve.api.sampling import MaxTokens, SamplingFields, samplings
from asr.serve.api.settings import Api
from asr.serve.api.stream import Chunks, event, respond
from asr.serve.request import Finished, Piece, Routed, ServeRequest, TokenLogprob

router = APIRouter()

MAX_PROMPTS = 64
"""Most prompts of one request."""

Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingFields):
    """Texts to go on with."""

    unsupported = frozenset({"suffix"})
    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    ) = Field(description="A text, texts, token ids, or lists of them. The router reads all of it.")
    max_tokens: MaxTokens | None = Field(
        None, description="Longest answer. Default: what the context has left, at most 1024."
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Number of likeliest tokens to report beside the chosen one."
    )
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None


class CompletionLogprobs(TypedDict):
    """Log-probabilities of an answer's tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One of the answers, or what is new of it in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    asr: NotRequired[outgoing.RouteFields]


class Completion(outgoing.StreamUsage):
    """Answers to prompts, or a piece of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    asr: NotRequired[outgoing.RouteFields]


@router.post("/v1/completions", responses=answering(Completion), operation_id="completion")
async def completion(body: CompletionRequest, request: Request) -> Response:
    """Go on with each prompt; several prompts and ``n`` answers each are choices of one answer."""
    api = Api.of(request)
    engine = api.ready_engine()
    model = served_model(engine, body.model)
    wanted = []
    for text in _prompts(body.prompt):
        prompt = await encode_text(engine, text)
        room = room_for(engine, prompt, body.max_tokens, api.settings.default_max_tokens)
        wanted += [
            ServeRequest(prompt, model, sampling)
            for sampling in samplings(body, room, body.logprobs, len(engine.tokenizer))
        ]
    answers = Answers.submit(request, engine, wanted)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return await respond(
        request,
        answers,
        bool(body.stream),
        lambda texts: _whole(answers, texts, body),
        lambda: _chunks(answers, body, usage),
    )


def _prompts(prompt: Any) -> Sequence[str | Sequence[int]]:
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    several: Sequence[str | Sequence[int]] = prompt
    return several


def _whole(answers: Answers, texts: list[Whole], body: CompletionRequest) -> Completion:
    choices: list[CompletionChoice] = [
        {
            "index": index,
            "text": whole.text,
            "logprobs": _logprobs(whole.logprobs, 0) if body.logprobs is not None else None,
            "finish_reason": _reason(answers.ends[index]),
            "asr": outgoing.route_fields(answers.routes[index]),
        }
        for index, whole in enumerate(texts)
    ]
    made = _completion(answers.routes[0].adapter, outgoing.new_id("cmpl-"), outgoing.now(), choices)
    made["usage"] = outgoing.usage_fields(answers.ends, body.n or 1)
    made["asr"] = outgoing.route_fields(answers.routes[0])
    return made


async def _chunks(answers: Answers, body: CompletionRequest, usage: bool) -> Chunks:
    identity, created = outgoing.new_id("cmpl-"), outgoing.now()
    offsets: dict[int, int] = {}

    def chunk(index: int, text: str, reason: Literal["stop", "length"] | None) -> Completion:
        choice: CompletionChoice = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
        }
        made = _completion(answers.routes[index].adapter, identity, created, [choice])
        if usage:
            made["usage"] = None
        return made

    async for index, arrived in answers.events():
        if isinstance(arrived, Routed):
            first = chunk(index, "", None)
            first["asr"] = first["choices"][0]["asr"] = outgoing.route_fields(arrived.route)
            yield event(first)
        elif isinstance(arrived, Piece) and (arrived.text or arrived.logprobs):
            piece = chunk(index, arrived.text, None)
            if body.logprobs is not None:
                values = _logprobs(arrived.logprobs, offsets.get(index, 0))
                piece["choices"][0]["logprobs"] = values
                offsets[index] = offsets.get(index, 0) + sum(map(len, values["tokens"]))
            yield event(piece)
        elif isinstance(arrived, Finished):
            yield event(chunk(index, "", _reason(arrived)))
    if usage:
        last = chunk(0, "", None)
        last["choices"] = []
        last["usage"] = outgoing.usage_fields(answers.ends, body.n or 1)
        yield event(last)
    yield "data: [DONE]\n\n"


def _completion(
    model: str, identity: str, created: int, choices: list[CompletionChoice]
) -> Completion:
    return {
        "id": identity,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
    }


def _logprobs(values: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    offsets = []
    for value in values:
        offsets.append(offset)
        offset += len(value.text)
    return {
        "tokens": [value.text for value in values],
        "token_logprobs": [max(value.logprob, -9999.0) for value in values],
        "top_logprobs": [
            {text: max(logprob, -9999.0) for _, text, logprob in value.top} for value in values
        ],
        "text_offset": offsets,
    }


def _reason(end: Finished) -> Literal["stop", "length"]:
    return "length" if end.reason == "length" else "stop"
