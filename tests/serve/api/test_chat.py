from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from asr.serve.api import make_app
from asr.serve.request import Event, Piece, Routed
from tests.serve.api.fake_engine import FakeEngine, Row, decide, says
from tests.serve.api.serving import USER, client

ROUTE = {
    "adapter": "red",
    "route": "auto",
    "domain": "red",
    "score": 0.9,
    "margin": 0.8,
    "threshold": 0.5,
    "probability": 0.75,
    "abstained": False,
    "scores": {"red": 0.9, "sum": 0.1},
}


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_an_answer_tells_its_route(ai: openai.OpenAI, engine: FakeEngine) -> None:
    raw = ai.chat.completions.with_raw_response.create(model="auto", messages=USER)
    assert raw.headers["x-asr-adapter"] == "red"
    assert raw.headers["x-asr-route"] == "auto"
    assert float(raw.headers["x-asr-score"]) == 0.9
    assert float(raw.headers["x-asr-margin"]) == 0.8
    answer = raw.parse()
    assert answer.model == "red"
    assert answer.model_extra["asr"] == ROUTE
    (choice,) = answer.choices
    assert choice.model_extra["asr"] == ROUTE
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello, world")
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    prompt = len(engine.requests[0].prompt.input_ids)
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == prompt + 3
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    ChatCompletion.model_validate(answer.model_dump(), strict=True)


@pytest.mark.parametrize(
    ("model", "content", "asked", "adapter", "route"),
    [
        (None, "red", "auto", "red", "auto"),
        ("auto", "a sum", "auto", "sum", "auto"),
        ("auto", "nothing known", "auto", "base", "abstained"),
        ("sum", "red", "sum", "sum", "named"),
        ("base", "red", "base", "base", "named"),
    ],
)
def test_the_model_routes_forces_or_bypasses(
    engine: FakeEngine, model: str | None, content: str, asked: str, adapter: str, route: str
) -> None:
    body = {"messages": [{"role": "user", "content": content}], "model": model}
    response = client(engine).post("/v1/chat/completions", json=body)
    assert engine.requests[0].model == asked
    answer = response.json()
    assert answer["model"] == response.headers["x-asr-adapter"] == adapter
    assert answer["asr"]["route"] == response.headers["x-asr-route"] == route
    if route == "named":
        assert "x-asr-score" not in response.headers
        assert answer["asr"]["score"] is None and answer["asr"]["scores"] == {}


def test_a_router_that_never_abstains_has_no_threshold(engine: FakeEngine) -> None:
    def script(row: Row) -> Iterator[Event]:
        route = row.route
        decision = decide(row.text, -math.inf)
        yield Routed(type(route)("red", "auto", decision))
        yield row.finished(1)

    engine.script = script
    answer = client(engine).post("/v1/chat/completions", json={"messages": USER}).json()
    assert answer["asr"]["threshold"] is None


def test_a_stream_is_the_same_answer_in_pieces(ai: openai.OpenAI) -> None:
    raw = ai.chat.completions.with_raw_response.create(
        model="auto", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["x-asr-adapter"] == "red" and raw.headers["x-asr-route"] == "auto"
    chunks = list(raw.parse())
    first, *_, end, usage = chunks
    assert first.model_extra["asr"] == first.choices[0].model_extra["asr"] == ROUTE
    assert first.choices[0].delta.role == "assistant"
    assert text_of(chunks) == "Hello, world"
    assert end.choices[0].finish_reason == "stop"
    assert usage.choices == [] and usage.usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    for chunk in chunks:
        assert chunk.model == "red"
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)


def test_a_stream_without_usage_has_none(ai: openai.OpenAI) -> None:
    chunks = list(ai.chat.completions.create(model="auto", messages=USER, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_pieces_come_as_they_are_made(ai: openai.OpenAI, engine: FakeEngine) -> None:
    seen = threading.Event()

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        yield Piece("first", 1)
        assert seen.wait(30)
        yield Piece(" second", 1)
        yield row.finished(2)

    engine.script = script
    texts = []
    for chunk in ai.chat.completions.create(model="auto", messages=USER, stream=True):
        texts.append(chunk.choices[0].delta.content)
        if texts[-1] == "first":
            seen.set()
    assert texts == ["", "first", " second", None]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_have_seeds_of_their_own(
    ai: openai.OpenAI, engine: FakeEngine, stream: bool
) -> None:
    got = ai.chat.completions.create(
        model="auto", messages=USER, n=3, seed=2**63 - 2, temperature=0.5, stream=stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )  # fmt: skip
    if stream:
        chunks = list(got)
        assert [text_of(chunks, index) for index in range(3)] == ["Hello, world"] * 3
        usage = chunks[-1].usage
    else:
        assert [choice.index for choice in got.choices] == [0, 1, 2]
        assert {choice.message.content for choice in got.choices} == {"Hello, world"}
        usage = got.usage
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert usage.prompt_tokens == len(engine.requests[0].prompt.input_ids)
    assert usage.completion_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(ai: openai.OpenAI, stream: bool) -> None:
    got = ai.chat.completions.create(
        model="auto", messages=USER, logprobs=True, top_logprobs=2, stream=stream
    )
    if stream:
        parts = [chunk.choices[0].logprobs for chunk in got]
        tokens = [token for part in parts if part for token in part.content]
    else:
        tokens = got.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["Hello", ", ", "world"]
    assert {token.logprob for token in tokens} == {-0.5}
    first = tokens[0]
    assert bytes(first.bytes) == b"Hello"
    assert [top.token for top in first.top_logprobs] == ["Hello", "\ufffd"]
    half = first.top_logprobs[1]
    assert half.bytes is None and half.logprob == -9999.0


def test_logprobs_alone_report_the_chosen_tokens(engine: FakeEngine) -> None:
    body = {"messages": USER, "logprobs": True}
    answer = client(engine).post("/v1/chat/completions", json=body).json()
    assert engine.requests[0].sampling.top_logprobs == 0
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_parameters_reach_the_engine(engine: FakeEngine) -> None:
    body = {
        "messages": USER,
        "max_completion_tokens": 7,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"5": 2, "6": -100},
        "stop": ["a", "b"],
        "seed": 3,
        "ignore_eos": True,
        "user": "u",
        "metadata": {"k": "v"},
        "service_tier": "auto",
        "store": False,
        "modalities": ["text"],
        "response_format": {"type": "text"},
    }
    assert client(engine).post("/v1/chat/completions", json=body).status_code == 200
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.7, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
    assert sampling.logit_bias == ((5, 2.0), (6, -100.0))
    assert sampling.stop == ("a", "b")
    assert sampling.seed == 3
    assert sampling.ignore_end is True
    assert sampling.top_logprobs is None


def test_defaults(engine: FakeEngine) -> None:
    body: dict[str, Any] = {"messages": USER, "temperature": None, "tools": None, "stop": "x"}
    assert client(engine).post("/v1/chat/completions", json=body).status_code == 200
    request = engine.requests[0]
    assert request.sampling.temperature == 0.0
    assert request.sampling.top_p == 1.0
    assert request.sampling.seed is None
    assert request.sampling.stop == ("x",)
    left = engine.context_length - len(request.prompt.input_ids)
    assert request.sampling.max_tokens == left
    small = client(engine, default_max_tokens=20)
    small.post("/v1/chat/completions", json=body)
    assert engine.requests[1].sampling.max_tokens == 20


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, 0.0),
        ({"top_p": 1}, 0.0),
        ({"top_k": 0, "min_p": 0}, 0.0),
        ({"top_p": 0.9}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"min_p": 0.1}, 1.0),
        ({"top_p": 0.9, "temperature": 0}, 0.0),
    ],
)
def test_answers_are_greedy_unless_variety_is_asked_for(
    engine: FakeEngine, fields: dict[str, float], temperature: float
) -> None:
    body = {"messages": USER, **fields}
    assert client(engine).post("/v1/chat/completions", json=body).status_code == 200
    assert engine.requests[0].sampling.temperature == temperature


def test_roles_and_parts_become_turns(engine: FakeEngine) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
        {"role": "user", "content": "red"},
    ]
    assert client(engine).post("/v1/chat/completions", json={"messages": messages}).is_success
    prompt = engine.requests[0].prompt
    assert engine.tokenizer.decode(prompt.input_ids) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\nred<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    pooled = [i for i, on in zip(prompt.input_ids, prompt.pool_mask, strict=True) if on]
    assert engine.tokenizer.decode(pooled) == "abred"
    assert engine.requests[0].opening == engine.template.answer_opening


def test_a_conversation_goes_on_with_what_the_client_got(
    ai: openai.OpenAI, engine: FakeEngine
) -> None:
    first = ai.chat.completions.create(model="auto", messages=USER)
    turns = [*USER, first.choices[0].message, {"role": "user", "content": "and?"}]
    assert ai.chat.completions.create(model="auto", messages=turns).choices
    text = engine.tokenizer.decode(engine.requests[1].prompt.input_ids)
    assert "assistant\nHello, world<|im_end|>" in text


def test_length_is_a_reason(engine: FakeEngine) -> None:
    body = {"messages": USER, "max_tokens": 2, "max_completion_tokens": 2}
    answer = client(engine).post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == "Hello, "


def test_clients_at_once_get_their_own_answers(ai: openai.OpenAI, engine: FakeEngine) -> None:
    def echo(row: Row) -> Iterator[Event]:
        number = row.text.split("number ")[1].split("<")[0]
        yield from says(*number)(row)

    engine.script = echo

    def ask(number: int) -> tuple[str, str]:
        domain = ("red", "sum")[number % 2]
        messages = [{"role": "user", "content": f"{domain} number {number}"}]
        if number % 3:
            answer = ai.chat.completions.create(model="auto", messages=messages)
            return answer.model, answer.choices[0].message.content
        chunks = list(ai.chat.completions.create(model="auto", messages=messages, stream=True))
        return chunks[0].model, text_of(chunks)

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(ask, range(100, 220)))
    assert got == [(("red", "sum")[n % 2], str(n)) for n in range(100, 220)]


async def ask_async(engine: FakeEngine) -> str:
    transport = httpx.ASGITransport(make_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://asr") as caller:
        response = await caller.post("/v1/chat/completions", json={"messages": USER})
        return response.json()["choices"][0]["message"]["content"]


def test_the_application_runs_in_another_loop(engine: FakeEngine) -> None:
    import asyncio

    assert asyncio.run(ask_async(engine)) == "Hello, world"
    assert asyncio.run(ask_async(engine)) == "Hello, world"
