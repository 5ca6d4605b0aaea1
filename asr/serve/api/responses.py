"""``POST /v1/responses``: OpenAI's newer form of a chat, whole or as typed events."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from asr.serve.api import outgoing
from asr.serve.api.answers import Answers, Whole
from asr.serve.api.documented import answering
from asr.serve.api.errors import ApiError
from asr.serve.api.prompts import encode_turns, room_for, served_model
from asr.serve.api.responses_request import ResponseRequest
from asr.serve.api.sampling import temperature
from asr.serve.api.settings import Api
from asr.serve.api.stream import Chunks, event, respond
from asr.serve.request import Finished, Piece, Sampling, ServeRequest

router = APIRouter()

State = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[None]


class OutputMessage(TypedDict):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: State
    content: list[OutputText]


class InputDetails(TypedDict):
    """Tokens of the prompt, broken down."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    """Tokens of the answer, broken down."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(TypedDict):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(TypedDict):
    """An answer with what it was asked with."""

    id: str
    object: Literal["response"]
    created_at: int
    status: State
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[str, dict[str, str]]
    tool_choice: Literal["auto", "none"]
    tools: list[None]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    asr: outgoing.RouteFields


@router.post("/v1/responses", responses=answering(ResponseAnswer), operation_id="response")
async def response(body: ResponseRequest, request: Request) -> Response:
    """Answer a conversation; nothing of it is kept."""
    api = Api.of(request)
    engine = api.ready_engine()
    model = served_model(engine, body.model)
    prompt = await encode_turns(engine, body.turns(), "input")
    room = room_for(
        engine,
        prompt,
        body.max_output_tokens,
        api.settings.default_max_tokens,
        "max_output_tokens",
    )
    sampling = Sampling(
        max_tokens=room,
        temperature=temperature(body.temperature, body.top_p),
        top_p=1.0 if body.top_p is None else body.top_p,
    )
    wanted = ServeRequest(prompt, model, sampling, engine.template.answer_opening)
    answers = Answers.submit(request, engine, [wanted])
    made = _Made(body, sampling, answers)
    return await respond(request, answers, bool(body.stream), made.whole, made.events, made.failed)


class _Made:
    """Makes the JSON of one answer, whole or in events."""

    def __init__(self, body: ResponseRequest, sampling: Sampling, answers: Answers) -> None:
        self._body = body
        self._sampling = sampling
        self._answers = answers
        self._id = outgoing.new_id("resp_")
        self._item = outgoing.new_id("msg_")
        self._created = outgoing.now()
        self._sent = 0

    def whole(self, texts: list[Whole]) -> ResponseAnswer:
        """Return the answer at its end."""
        return self._answer(texts[0].text)

    async def events(self) -> Chunks:
        """Yield the events of a stream."""
        yield self._event("response.created", response=self._answer(None))
        yield self._event("response.in_progress", response=self._answer(None))
        item = self._message("in_progress", None)
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part("response.content_part.added", part=self._text(""))
        text = ""
        async for _, arrived in self._answers.events():
            if isinstance(arrived, Piece) and arrived.text:
                text += arrived.text
                yield self._part("response.output_text.delta", delta=arrived.text, logprobs=[])
            elif isinstance(arrived, Finished):
                yield self._part("response.output_text.done", text=text, logprobs=[])
                yield self._part("response.content_part.done", part=self._text(text))
                state = _state(arrived)
                item = self._message(state, text)
                yield self._event("response.output_item.done", output_index=0, item=item)
                yield self._event(f"response.{state}", response=self._answer(text))

    def failed(self, error: ApiError) -> str:
        """Return the event of a stream that failed."""
        body = error.body()["error"]
        return self._event(
            "error",
            code=body["code"],
            message=body["message"],
            param=body["param"],
            error=body,
        )

    def _event(self, name: str, **fields: Any) -> str:
        number = self._sent
        self._sent += 1
        return event({"type": name, "sequence_number": number, **fields}, name)

    def _part(self, name: str, **fields: Any) -> str:
        return self._event(name, item_id=self._item, output_index=0, content_index=0, **fields)

    def _answer(self, text: str | None) -> ResponseAnswer:
        """Return the answer; ``text`` is None while it is being made."""
        body, end = self._body, self._answers.ends.get(0)
        route = self._answers.routes[0]
        state: State = _state(end) if end else "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": state,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if state == "incomplete" else None
            ),
            "instructions": body.instructions,
            "max_output_tokens": self._sampling.max_tokens,
            "metadata": body.metadata or {},
            "model": route.adapter,
            "output": [] if text is None else [self._message(state, text)],
            "parallel_tool_calls": (
                True if body.parallel_tool_calls is None else body.parallel_tool_calls
            ),
            "previous_response_id": None,
            "store": False,
            "temperature": self._sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [],
            "top_p": self._sampling.top_p,
            "truncation": "disabled",
            "usage": _usage(end) if end else None,
            "asr": outgoing.route_fields(route),
        }

    def _message(self, state: State, text: str | None) -> OutputMessage:
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": state,
            "content": [] if text is None else [self._text(text)],
        }

    @staticmethod
    def _text(text: str) -> OutputText:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _state(end: Finished) -> State:
    return "incomplete" if end.reason == "length" else "completed"


def _usage(end: Finished) -> ResponseUsage:
    usage = end.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
