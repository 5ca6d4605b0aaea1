"""What answers of all endpoints have in common, in OpenAI's shape."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import NotRequired

from typing_extensions import TypedDict

from asr.router import Decision
from asr.serve.request import Finished, Route, RouteKind, TokenLogprob


class DecisionFields(TypedDict):
    """A router's decision; ``threshold`` is null where the router never abstains."""

    domain: str | None
    score: float | None
    margin: float | None
    threshold: float | None
    probability: float | None
    abstained: bool
    scores: dict[str, float]


class RouteFields(DecisionFields):
    """How an answer was routed; without a decision where the request named its adapter."""

    adapter: str
    route: RouteKind


class PromptDetails(TypedDict):
    """Tokens of the prompt, broken down."""

    cached_tokens: int


class UsageFields(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(TypedDict):
    """A token that was likely; ``bytes`` is null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TopLogprob):
    """A token that was generated, with the likeliest ones."""

    top_logprobs: list[TopLogprob]


class StreamUsage(TypedDict):
    """The usage in a stream's chunk: null but in the last."""

    usage: NotRequired[UsageFields | None]


def decision_fields(decision: Decision | None) -> DecisionFields:
    """Return a decision as JSON values."""
    if decision is None:
        return {
            "domain": None,
            "score": None,
            "margin": None,
            "threshold": None,
            "probability": None,
            "abstained": False,
            "scores": {},
        }
    return {
        "domain": decision.domain,
        "score": decision.score,
        "margin": decision.margin,
        "threshold": decision.threshold if math.isfinite(decision.threshold) else None,
        "probability": decision.probability,
        "abstained": decision.abstained,
        "scores": decision.scores,
    }


def route_fields(route: Route) -> RouteFields:
    """Return the ``asr`` field of an answer."""
    return {"adapter": route.adapter, "route": route.kind, **decision_fields(route.decision)}


def route_headers(route: Route) -> dict[str, str]:
    """Return the response headers that tell a route."""
    headers = {"x-asr-adapter": route.adapter, "x-asr-route": route.kind}
    if route.decision is not None:
        headers["x-asr-score"] = f"{route.decision.score:.6g}"
        if route.decision.margin is not None:
            headers["x-asr-margin"] = f"{route.decision.margin:.6g}"
    return headers


def usage_fields(ends: Mapping[int, Finished], choices: int) -> UsageFields:
    """Sum up the tokens of answers, ``choices`` to each prompt: a prompt counts once."""
    firsts = [end.usage for index, end in ends.items() if index % choices == 0]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    completion = sum(end.usage.completion_tokens for end in ends.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in firsts)},
    }


def chosen_logprobs(logprobs: Iterable[TokenLogprob]) -> list[ChosenLogprob]:
    """Return log-probabilities as chats and responses show them."""
    return [
        {
            **_logprob(token.text, token.logprob),
            "top_logprobs": [_logprob(text, value) for _, text, value in token.top],
        }
        for token in logprobs
    ]


def _logprob(text: str, value: float) -> TopLogprob:
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": max(value, -9999.0),  # JSON has no infinity
        "bytes": list(text.encode()) if whole else None,
    }


def new_id(prefix: str) -> str:
    """Return an id that no other answer has."""
    return f"{prefix}{uuid.uuid4().hex}"


def now() -> int:
    """Return the Unix time."""
    return int(time.time())
