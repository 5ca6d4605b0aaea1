"""``POST /v1/route``: decisions without answers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from typing_extensions import TypedDict

from asr.serve.api import outgoing
from asr.serve.api.documented import ERRORS
from asr.serve.api.errors import refused
from asr.serve.api.fields import Strict
from asr.serve.api.messages import Message, Text, plain_turns
from asr.serve.api.prompts import encode_turns
from asr.serve.api.settings import Api
from asr.serve.interface import ClosingError, QueueFullError

router = APIRouter()

MAX_PROMPTS = 256
"""Most prompts of one request."""

Conversation = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class RouteRequest(Strict):
    """Prompts to decide on."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Conversation
        | Annotated[list[Conversation], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    ) = Field(description="A text, texts, a conversation, or conversations.")


class RoutedPrompt(outgoing.DecisionFields):
    """Where a prompt would go; ``adapter`` is base where the router abstained."""

    index: int
    object: Literal["route"]
    adapter: str


class RouteAnswer(TypedDict):
    """A decision for each prompt, in order."""

    object: Literal["list"]
    data: list[RoutedPrompt]


@router.post("/v1/route", responses=ERRORS, operation_id="route")
async def route(body: RouteRequest, request: Request) -> RouteAnswer:
    """Decide which adapter would answer each prompt, without answering."""
    engine = Api.of(request).ready_engine()
    conversations = _conversations(body.input)
    several = len(conversations) > 1
    prompts = [
        await encode_turns(engine, turns, f"input[{index}]" if several else "input")
        for index, turns in enumerate(conversations)
    ]
    try:
        decisions = await asyncio.wrap_future(engine.route(prompts))
    except (QueueFullError, ClosingError) as error:
        raise refused(error) from error
    data: list[RoutedPrompt] = [
        {
            "index": index,
            "object": "route",
            "adapter": decision.route,
            **outgoing.decision_fields(decision),
        }
        for index, decision in enumerate(decisions)
    ]
    return {"object": "list", "data": data}


def _conversations(given: Any) -> list[list[dict[str, str]]]:
    prompts = [given] if isinstance(given, str) else list(given)
    if not isinstance(prompts[0], str | list):
        prompts = [prompts]
    return [
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain_turns(prompt)
        for prompt in prompts
    ]
