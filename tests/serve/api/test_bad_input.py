"""What clients get wrong: one line that names the field, and nothing reaches the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import USER, client, error_of

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def refused(engine: FakeEngine, body: Any) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = error_of(client(engine).post(PATH, content=content, headers=JSON), 400)
    assert error["type"] == "invalid_request_error"
    assert engine.requests == []
    return error


def turn(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "x", **fields}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: is missing; give it"),
        ([], "messages: must have at least 1 item"),
        ("x", "messages: must be an array"),
        ([5], "messages[0]: must be an object"),
        ([{"content": "x"}], "messages[0]: must be an object with a role"),
        (
            [{"role": "usr", "content": "x"}],
            "messages[0]: unknown role 'usr' (did you mean 'user'?); there are: assistant, "
            "developer, system, user",
        ),
        (
            [{"role": "tool", "content": "x", "tool_call_id": "1"}],
            "messages[0]: unknown role 'tool'; there are: assistant, developer, system, user",
        ),
        ([{"role": "user"}], "messages[0].content: is missing; give it"),
        (turn(content=None), "messages[0].content: is missing; give it"),
        (turn(content=""), "messages[0].content: must have at least 1 character"),
        (turn(content=5), "messages[0].content: must be text or an array"),
        (turn(content={}), "messages[0].content: must be text or an array"),
        (turn(content=[]), "messages[0].content: must have at least 1 item"),
        (turn(content=["x"]), "messages[0].content[0]: must be an object"),
        (
            turn(content=[{"type": "text"}]),
            "messages[0].content[0].text: is missing; give it",
        ),
        (
            turn(content=[{"type": "text", "text": ""}]),
            "messages[0].content[0].text: must have at least 1 character",
        ),
        (
            turn(content=[{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]),
            "messages[0].content: parts of type 'image_url' are not supported: this server takes "
            "text only",
        ),
        (
            turn(content=[{"type": "text", "text": "x"}, {"type": "input_audio"}]),
            "messages[0].content: parts of type 'input_audio' are not supported: this server "
            "takes text only",
        ),
        (
            turn(content=[{"type": "file", "file": {"file_data": "x"}}]),
            "messages[0].content: parts of type 'file' are not supported: this server takes text "
            "only",
        ),
        (turn(name="me"), "messages[0]: 'name' is not supported by this server; leave it out"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": []}, *USER],
            "messages[0]: 'tool_calls' is not supported by this server; leave it out",
        ),
        (
            [*USER, {"role": "assistant", "content": "x"}],
            "messages ends with a message of the role assistant; end with one of the role user",
        ),
        (
            [{"role": "system", "content": "x"}],
            "messages ends with a message of the role system; end with one of the role user",
        ),
        (
            turn(content=" \n\t"),
            "the prompt has no text to route on (only white space); write one",
        ),
        (
            turn(content="\ud800"),
            "messages[0].content: must be text, unable to parse raw data as a unicode string",
        ),
    ],
)
def test_messages(engine: FakeEngine, messages: Any, message: str) -> None:
    assert refused(engine, {"messages": messages})["message"] == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "1"}, "temperature: must be a number"),
        ({"temperature": True}, "temperature: must be a number"),
        ({"temperature": -0.1}, "temperature: must be greater than or equal to 0"),
        ({"temperature": 2.1}, "temperature: must be less than or equal to 2"),
        ({"temperature": float("nan")}, "temperature: must be a finite number"),
        ({"temperature": float("inf")}, "temperature: must be a finite number"),
        ({"temperature": 10**400}, "temperature: must be a number"),
        ({"top_p": 0}, "top_p: must be greater than 0"),
        ({"top_p": 1.1}, "top_p: must be less than or equal to 1"),
        ({"top_k": -1}, "top_k: must be greater than or equal to 0"),
        ({"top_k": 1.5}, "top_k: must be a whole number"),
        ({"min_p": 2}, "min_p: must be less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be greater than 0"),
        ({"presence_penalty": 3}, "presence_penalty: must be less than or equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty: must be greater than or equal to -2"),
        ({"max_tokens": 0}, "max_tokens: must be greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens: must be a whole number"),
        (
            {"max_tokens": 1, "max_completion_tokens": 2},
            "max_completion_tokens is 2 and max_tokens is 1; give one of them",
        ),
        ({"n": 0}, "n: must be greater than or equal to 1"),
        ({"n": 9}, "n: must be less than or equal to 8"),
        ({"seed": 2**63}, "seed: must be less than or equal to 9223372036854775807"),
        ({"stop": ""}, "stop: must have at least 1 character"),
        ({"stop": ["a", 3]}, "stop[1]: must be text"),
        ({"stop": ["a"] * 17}, "stop: must have at most 16 items"),
        ({"stop": 5}, "stop: must be text or an array"),
        ({"stream": "yes"}, "stream: must be true or false"),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options is for streams; set stream to true",
        ),
        (
            {"stream": True, "stream_options": {"include_usge": True}},
            "stream_options: unknown field 'include_usge' (did you mean 'include_usage'?); "
            "there are: include_obfuscation, include_usage",
        ),
        ({"logit_bias": []}, "logit_bias: must be an object"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5: must be less than or equal to 100"),
        (
            {"logit_bias": {"320": 1}},
            "logit_bias names the token 320; token ids go from 0 to 319",
        ),
        (
            {"logit_bias": {str(i): 1 for i in range(1025)}},
            "logit_bias: must have at most 1024 items",
        ),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs to be true"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs: must be less than or equal to 20",
        ),
        ({"metadata": {"a": 1}}, "metadata.a: must be text"),
        ({"model": 5}, "model: must be text"),
        ({"model": "x" * 201}, "model: must have at most 200 characters"),
        ({"response_format": {"type": "json_object"}}, "response_format.type: must be 'text'"),
        ({"modalities": ["text", "audio"]}, "modalities[1]: must be 'text'"),
        ({"store": True}, "store: must be False"),
        ({"service_tier": "flex"}, "service_tier: must be 'auto' or 'default'"),
        (
            {"temprature": 1},
            "unknown field 'temprature' (did you mean 'temperature'?); there are: "
            "frequency_penalty, ignore_eos, ",
        ),
    ],
)
def test_parameters(engine: FakeEngine, fields: dict[str, Any], message: str) -> None:
    body = {"messages": USER, **fields}
    got = refused(engine, body)["message"]
    assert got.startswith(message) if message.endswith(", ") else got == message


@pytest.mark.parametrize(
    "name",
    [
        *("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls", "audio"),
        *("prediction", "reasoning_effort", "verbosity", "web_search_options", "moderation"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(engine: FakeEngine, name: str) -> None:
    error = refused(engine, {"messages": USER, name: []})
    assert error["message"] == f"'{name}' is not supported by this server; leave it out"
    assert (error["param"], error["code"]) == (name, "unsupported_value")


NO_OBJECT = "the body must be a JSON object, sent with the header content-type: application/json"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is no JSON: Expecting property name enclosed in double quotes at "),
        (b'{"messages": ', "the body is no JSON: Expecting value at character 13"),
        (b"\xff\xfe{", "the body is no JSON text in UTF-8"),
        (b'{"messages": "\xff"}', "the body is no JSON text in UTF-8"),
        (b"[" * 100_000, "the body is no JSON text in UTF-8"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "the body is no JSON text in UTF-8"),
        (b"", NO_OBJECT),
        (b"null", NO_OBJECT),
        (b"[]", NO_OBJECT),
        (b'"x"', NO_OBJECT),
    ],
)
def test_bodies(engine: FakeEngine, body: bytes, message: str) -> None:
    error = refused(engine, body)
    assert error["message"].startswith(message)
    assert error["code"] == "invalid_json"


def test_a_body_that_is_not_sent_as_json_is_not_read(engine: FakeEngine) -> None:
    """Another site's page may send plain text without asking."""
    content = json.dumps({"messages": USER})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = client(engine).post(PATH, content=content, headers={"content-type": kind})
        assert error_of(response, 400)["message"] == NO_OBJECT
    assert engine.requests == []


def test_a_prompt_beyond_the_context_names_both_numbers(engine: FakeEngine) -> None:
    error = refused(engine, {"messages": turn(content="x " * 600)})
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == (
        "the prompt has 1213 tokens, the context holds 512 with the answer; shorten the prompt"
    )
    error = refused(engine, {"messages": USER, "max_tokens": 600})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert error["message"] == (
        "the prompt of 22 tokens and max_tokens=600 exceed the context of 512; ask for at most "
        "490, or shorten the prompt"
    )
    error = refused(engine, {"messages": USER, "max_completion_tokens": 600})
    assert error["param"] == "max_completion_tokens"


def test_a_prompt_that_leaves_room_for_one_token(engine: FakeEngine) -> None:
    length = len("x" * 500)
    engine.context_length = length + 14
    assert client(engine).post(PATH, json={"messages": turn(content="x" * length)}).is_success
    assert engine.requests[0].sampling.max_tokens == 1
    engine.requests.clear()
    engine.context_length -= 1
    error = refused(engine, {"messages": turn(content="x" * length)})
    assert error["message"] == (
        "the prompt has 513 tokens, the context holds 513 with the answer; shorten the prompt"
    )


def test_a_huge_message_is_refused(engine: FakeEngine) -> None:
    error = refused(engine, {"messages": turn(content="word " * 200_000)})
    assert error["code"] == "context_length_exceeded"


def test_many_bad_entries_are_not_reported_one_by_one(engine: FakeEngine) -> None:
    assert refused(engine, {"messages": [1] * 300_000})["param"] == "messages[0]"
    body = {"messages": USER, "metadata": {str(i): i for i in range(100_000)}}
    assert refused(engine, body)["message"] == "metadata: must have at most 64 items"


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/embeddings", "/docs", "/redoc", "/page/x"])
def test_unknown_paths(engine: FakeEngine, path: str) -> None:
    error = error_of(client(engine).get(path), 404)
    assert error["message"] == f"there is nothing at {path}; see /openapi.json"


def test_wrong_methods(engine: FakeEngine) -> None:
    response = client(engine).get(PATH)
    assert error_of(response, 405)["message"] == f"GET is not possible at {PATH}"
    assert response.headers["allow"] == "POST"


def test_a_wrong_method_where_there_are_two(engine: FakeEngine) -> None:
    response = client(engine).put("/v1/adapters")
    assert error_of(response, 405)["message"] == "PUT is not possible at /v1/adapters"
    assert response.headers["allow"] == "GET, POST"
