"""What an engine cannot do, told over HTTP: before an answer, and in the middle of one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from asr.serve.request import Event, Failed, Piece, Routed
from tests.serve.api.fake_engine import FakeEngine, Row, Script, says
from tests.serve.api.serving import USER, client, error_of

PATH = "/v1/chat/completions"
BODY = {"messages": USER}


def fails(kind: Any, message: str = "the reason", routed: bool = False) -> Script:
    def script(row: Row) -> Iterator[Event]:
        if routed:
            yield Routed(row.route)
        yield Failed(kind, message)

    return script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("unknown_model", 404, "model_not_found"),
        ("too_long", 400, "context_length_exceeded"),
        ("adapter", 503, "adapter_unavailable"),
        ("closing", 503, "shutting_down"),
    ],
)
def test_failures_before_the_first_token_are_http_errors(
    engine: FakeEngine, kind: str, status: int, code: str, routed: bool, stream: bool
) -> None:
    engine.script = fails(kind, routed=routed)
    error = error_of(client(engine).post(PATH, json={**BODY, "stream": stream}), status)
    assert (error["message"], error["code"]) == ("the reason", code)


@pytest.mark.parametrize("stream", [False, True])
def test_an_internal_failure_says_nothing_but_its_id(engine: FakeEngine, stream: bool) -> None:
    engine.script = fails("internal", "CUDA error in /home/me/secret.py")
    response = client(engine).post(PATH, json={**BODY, "stream": stream})
    error = error_of(response, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert error["message"] == (
        f"internal error; the server's log has it under {response.headers['x-request-id']}"
    )


def test_what_nobody_foresaw_is_logged_under_its_id(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret inside")

    engine.submit = broken
    with caplog.at_level(logging.ERROR, "asr.serve"):
        response = client(engine).post(PATH, json=BODY)
    identity = response.headers["x-request-id"]
    assert error_of(response, 500)["message"] == (
        f"internal error; the server's log has it under {identity}"
    )
    assert "secret" not in response.text
    assert identity in caplog.text and "secret inside" in caplog.text


def test_a_full_queue_says_when_to_come_again(engine: FakeEngine) -> None:
    engine.full = True
    response = client(engine).post(PATH, json=BODY)
    error = error_of(response, 429)
    assert response.headers["retry-after"] == "7"
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert error["message"] == "1000 requests are waiting already; try again in 7 s"


def test_all_answers_of_a_request_are_taken_or_none(engine: FakeEngine) -> None:
    def script(row: Row) -> Iterator[Event]:
        engine.full = True  # after the first one
        row.cancelled.wait(30)
        yield Piece("", 0)

    submit = engine.submit

    def first_only(*arguments: Any) -> Row:
        row = submit(*arguments)
        engine.full = True
        return row

    engine.script = script
    engine.submit = first_only
    error_of(client(engine).post(PATH, json={**BODY, "n": 3}), 429)
    assert len(engine.rows) == 1
    assert engine.rows[0].cancelled.is_set()


def test_no_requests_in_a_shutdown(engine: FakeEngine) -> None:
    engine.ready = False
    caller = client(engine)
    assert error_of(caller.post(PATH, json=BODY), 503)["code"] == "shutting_down"
    assert error_of(caller.get("/ready"), 503)["code"] == "not_ready"
    assert caller.get("/health").json() == {"status": "ok"}


def test_no_requests_while_the_model_loads() -> None:
    caller = client(None)
    assert caller.get("/health").json() == {"status": "ok"}
    for response in (
        caller.get("/ready"),
        caller.get("/v1/models"),
        caller.get("/v1/status"),
        caller.post(PATH, json=BODY),
        caller.post("/v1/completions", json={"prompt": "red"}),
        caller.post("/v1/responses", json={"input": "red"}),
        caller.post("/v1/route", json={"input": "red"}),
    ):
        error = error_of(response, 503)
        assert error["message"] == "the model is still loading; try again later"
        assert error["code"] == "loading"
    assert caller.get("/metrics").status_code == 200


@pytest.mark.parametrize("kind", ["closing", "internal"])
def test_a_failure_within_a_stream_ends_it_with_an_error(
    ai: openai.OpenAI, engine: FakeEngine, kind: Any
) -> None:
    seen = threading.Event()

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        yield Piece("half", 1)
        assert seen.wait(30)
        yield Failed(kind, "secret" if kind == "internal" else "the server is shutting down")

    engine.script = script
    texts = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in ai.chat.completions.create(model="auto", messages=USER, stream=True):
            texts.append(chunk.choices[0].delta.content)
            if texts[-1] == "half":
                seen.set()
    assert texts == ["", "half"]
    assert "secret" not in str(caught.value)
    expected = "internal error" if kind == "internal" else "the server is shutting down"
    assert str(caught.value).startswith(expected)


def test_one_of_several_answers_fails_and_the_others_are_let_go(engine: FakeEngine) -> None:
    def script(row: Row) -> Iterator[Event]:
        if row.request.sampling.seed == 1:
            yield Failed("adapter", "adapter 'red' is damaged")
        row.cancelled.wait(30)
        yield Piece("", 0)

    engine.script = script
    error = error_of(client(engine).post(PATH, json={**BODY, "n": 2, "seed": 0}), 503)
    assert error["message"] == "adapter 'red' is damaged"
    assert engine.rows[0].cancelled.is_set()


def test_an_answer_cut_off_by_the_engine_is_no_answer(engine: FakeEngine) -> None:
    engine.script = says("half", reason="cancelled")
    error = error_of(client(engine).post(PATH, json=BODY), 503)
    assert error["message"] == "the server is shutting down"


def test_a_failure_leaves_the_next_request_alone(engine: FakeEngine) -> None:
    caller = client(engine)
    engine.script = fails("internal")
    assert caller.post(PATH, json=BODY).status_code == 500
    engine.script = says("fine")
    assert caller.post(PATH, json=BODY).json()["choices"][0]["message"]["content"] == "fine"
