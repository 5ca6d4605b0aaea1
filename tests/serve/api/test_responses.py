from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from asr.serve.request import Event, Failed, Piece, Routed
from tests.serve.api.fake_engine import FakeEngine, Row
from tests.serve.api.serving import client, error_of


def test_a_text_gets_an_answer(ai: openai.OpenAI, engine: FakeEngine) -> None:
    raw = ai.responses.with_raw_response.create(
        model="auto", input="red", instructions="be brief", metadata={"k": "v"}
    )
    assert raw.headers["x-asr-adapter"] == "red"
    answer = raw.parse()
    assert answer.output_text == "Hello, world"
    assert answer.status == "completed"
    assert answer.model == "red"
    assert answer.instructions == "be brief"
    assert answer.metadata == {"k": "v"}
    assert answer.model_extra["asr"]["route"] == "auto"
    assert answer.usage.input_tokens == len(engine.requests[0].prompt.input_ids)
    assert (answer.usage.output_tokens, answer.usage.input_tokens_details.cached_tokens) == (3, 3)
    Response.model_validate(raw.http_response.json())
    assert engine.tokenizer.decode(engine.requests[0].prompt.input_ids).startswith(
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nred<|im_end|>"
    )


def test_a_conversation_goes_on_with_what_the_client_got(
    ai: openai.OpenAI, engine: FakeEngine
) -> None:
    first = ai.responses.create(model="auto", input="red")
    turns = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "red"}]},
        *first.output,
        {"type": "message", "role": "user", "content": "more"},
    ]
    assert ai.responses.create(model="auto", input=turns).output_text == "Hello, world"
    assert engine.tokenizer.decode(engine.requests[1].prompt.input_ids) == (
        "<|im_start|>system\nd<|im_end|>\n<|im_start|>user\nred<|im_end|>\n"
        "<|im_start|>assistant\nHello, world<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("longest", "state"), [(2, "incomplete"), (9, "completed")])
def test_a_stream_of_typed_events(ai: openai.OpenAI, longest: int, state: str) -> None:
    events = list(
        ai.responses.create(model="auto", input="red", stream=True, max_output_tokens=longest)
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{state}",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events[4:-4])
    assert text == events[-4].text == events[-1].response.output_text
    assert text == ("Hello, " if state == "incomplete" else "Hello, world")
    created = events[0].response
    assert created.status == "in_progress" and created.usage is None and created.output == []
    assert created.model_extra["asr"]["adapter"] == "red"
    reason = events[-1].response.incomplete_details
    assert (reason.reason if reason else None) == (
        "max_output_tokens" if state == "incomplete" else None
    )
    for event in events:
        type(event).model_validate(event.model_dump())


def test_the_clients_own_stream_reads_it(ai: openai.OpenAI) -> None:
    with ai.responses.stream(model="auto", input="red") as stream:
        assert stream.get_final_response().output_text == "Hello, world"


def test_a_stream_that_fails_ends_with_an_error(ai: openai.OpenAI, engine: FakeEngine) -> None:
    seen = threading.Event()

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        yield Piece("half", 1)
        assert seen.wait(30)
        yield Failed("internal", "secret")

    engine.script = script
    texts = []
    with pytest.raises(openai.APIError, match=r"^internal error; the server's log has it under"):
        for event in ai.responses.create(model="auto", input="red", stream=True):
            if event.type == "response.output_text.delta":
                texts.append(event.delta)
                seen.set()
    assert texts == ["half"]


def test_sampling(engine: FakeEngine) -> None:
    body = {
        "input": "red",
        "temperature": 0.3,
        "top_p": 0.8,
        "max_output_tokens": 4,
        "store": False,
    }
    assert client(engine).post("/v1/responses", json=body).is_success
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.3, 0.8, 4)


def test_harmless_defaults_are_taken(engine: FakeEngine) -> None:
    body = {
        "input": "red",
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "include": [],
        "background": False,
        "previous_response_id": None,
        "text": {"format": {"type": "text"}},
    }
    assert client(engine).post("/v1/responses", json=body).is_success


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"previous_response_id": "resp_1"},
            "'previous_response_id' is not supported by this server; leave it out",
        ),
        ({"reasoning": {}}, "'reasoning' is not supported by this server; leave it out"),
        ({"store": True}, "store: must be False"),
        ({"tools": [{"type": "web_search"}]}, "tools: must have at most 0 items"),
        ({"tool_choice": "required"}, "tool_choice: must be 'auto' or 'none'"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type: must be 'text'"),
        ({"input": ""}, "input: must have at least 1 character"),
        ({"input": []}, "input: must have at least 1 item"),
        ({"input": None}, "input: is missing; give it"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]},
            "input[0]: items of type 'function_call_output' are not supported: this server takes "
            "messages only",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content: parts of type 'input_image' are not supported: this server takes "
            "text only",
        ),
        (
            {"input": [{"role": "assistant", "content": "x"}]},
            "input ends with a message of the role assistant; end with one of the role user",
        ),
        (
            {"max_output_tokens": 600},
            "the prompt of 16 tokens and max_output_tokens=600 exceed the context of 512; "
            "ask for at most 496, or shorten the prompt",
        ),
        ({"instruction": "x"}, "unknown field 'instruction' (did you mean 'instructions'?); there"),
    ],
)
def test_what_is_not_supported_is_named(
    engine: FakeEngine, fields: dict[str, Any], message: str
) -> None:
    response = client(engine).post("/v1/responses", json={"input": "red", **fields})
    assert error_of(response, 400)["message"].startswith(message)
    assert engine.requests == []
