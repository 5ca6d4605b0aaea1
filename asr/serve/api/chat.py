"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from asr.serve.api import outgoing
from asr.serve.api.answers import Answers, Whole
from asr.serve.api.documented import answering
from asr.serve.api.errors import ApiError
from asr.serve.api.fields import Labels, Strict
from asr.serve.api.messages import Message, plain_turns
from asr.serve.api.prompts import encode_turns, room_for, served_model
from asr.serve.api.sampling import MaxTokens, SamplingFields, samplings
from asr.serve.api.settings import Api
from asr.serve.api.stream import Chunks, event, respond
from asr.serve.request import Finished, Piece, Routed, ServeRequest

router = APIRouter()


class TextFormat(Strict):
    """The only form of an answer: text."""

    type: Literal["text"]


class ChatRequest(SamplingFields):
    """A chat that wants an answer."""

    unsupported = frozenset(
        {
            *("audio", "function_call", "functions", "moderation", "parallel_tool_calls"),
            *("prediction", "prompt_cache_options", "reasoning_effort", "tool_choice", "tools"),
            *("verbosity", "web_search_options"),
        }
    )
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] = Field(
        description="The conversation; the last message is the user's."
    )
    max_completion_tokens: MaxTokens | None = Field(
        None, description="Longest answer. Default: what the context has left, at most 1024."
    )
    max_tokens: MaxTokens | None = Field(None, description="An older name of the same.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    metadata: Labels | None = Field(
        None, description="Accepted, without effect on the answer; nothing is stored."
    )
    prompt_cache_key: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_retention: Literal["in_memory"] | None = None
    safety_identifier: str | None = Field(None, description="Accepted, without effect.")


class ChatMessage(TypedDict):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatLogprobs(TypedDict):
    """Log-probabilities of an answer's tokens."""

    content: list[outgoing.ChosenLogprob]
    refusal: None


class ChatChoice(TypedDict):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    asr: outgoing.RouteFields


class ChatCompletion(TypedDict):
    """Answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: outgoing.UsageFields
    asr: outgoing.RouteFields


class Delta(TypedDict):
    """What is new of an answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChunkChoice(TypedDict):
    """What is new of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    asr: NotRequired[outgoing.RouteFields]


class ChatChunk(outgoing.StreamUsage):
    """A piece of a stream; the first of each answer has its route."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    asr: NotRequired[outgoing.RouteFields]


@router.post(
    "/v1/chat/completions", responses=answering(ChatCompletion), operation_id="chat_completion"
)
async def chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a chat with the adapter that the router chooses, or that ``model`` names."""
    api = Api.of(request)
    engine = api.ready_engine()
    model = served_model(engine, body.model)
    longest = _longest(body)
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    top = _top_logprobs(body)
    prompt = await encode_turns(engine, plain_turns(body.messages), "messages")
    room = room_for(engine, prompt, longest, api.settings.default_max_tokens, field)
    opening = engine.template.answer_opening
    wanted = [
        ServeRequest(prompt, model, sampling, opening)
        for sampling in samplings(body, room, top, len(engine.tokenizer))
    ]
    answers = Answers.submit(request, engine, wanted)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return await respond(
        request,
        answers,
        bool(body.stream),
        lambda texts: _whole(answers, texts, top is not None),
        lambda: _chunks(answers, top is not None, usage),
    )


def _longest(body: ChatRequest) -> int | None:
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise ApiError(
            400,
            f"max_completion_tokens is {new} and max_tokens is {old}; give one of them",
            param="max_tokens",
        )
    return old if new is None else new


def _top_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _whole(answers: Answers, texts: list[Whole], logprobs: bool) -> ChatCompletion:
    choices: list[ChatChoice] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "logprobs": _logprobs(whole.logprobs) if logprobs else None,
            "finish_reason": _reason(answers.ends[index]),
            "asr": outgoing.route_fields(answers.routes[index]),
        }
        for index, whole in enumerate(texts)
    ]
    return {
        "id": outgoing.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": outgoing.now(),
        "model": answers.routes[0].adapter,
        "choices": choices,
        "usage": outgoing.usage_fields(answers.ends, len(texts)),
        "asr": outgoing.route_fields(answers.routes[0]),
    }


async def _chunks(answers: Answers, logprobs: bool, usage: bool) -> Chunks:
    identity, created = outgoing.new_id("chatcmpl-"), outgoing.now()

    def chunk(index: int, delta: Delta, **more: Any) -> ChatChunk:
        choice: ChunkChoice = {
            "index": index,
            "delta": delta,
            "logprobs": more.get("logprobs"),
            "finish_reason": more.get("finish_reason"),
        }
        made: ChatChunk = {
            "id": identity,
            "object": "chat.completion.chunk",
            "created": created,
            "model": answers.routes[index].adapter,
            "choices": [choice],
        }
        if usage:
            made["usage"] = None
        return made

    async for index, arrived in answers.events():
        if isinstance(arrived, Routed):
            first = chunk(index, {"role": "assistant", "content": ""})
            first["asr"] = first["choices"][0]["asr"] = outgoing.route_fields(arrived.route)
            yield event(first)
        elif isinstance(arrived, Piece) and (arrived.text or arrived.logprobs):
            values = _logprobs(arrived.logprobs) if logprobs else None
            yield event(chunk(index, {"content": arrived.text}, logprobs=values))
        elif isinstance(arrived, Finished):
            yield event(chunk(index, {}, finish_reason=_reason(arrived)))
    if usage:
        last = chunk(0, {})
        last["choices"] = []
        last["usage"] = outgoing.usage_fields(answers.ends, len(answers.ends))
        yield event(last)
    yield "data: [DONE]\n\n"


def _logprobs(values: Any) -> ChatLogprobs:
    return {"content": outgoing.chosen_logprobs(values), "refusal": None}


def _reason(end: Finished) -> Literal["stop", "length"]:
    return "length" if end.reason == "length" else "stop"
