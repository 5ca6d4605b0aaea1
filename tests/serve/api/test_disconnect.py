"""Clients that go away or do not read, against a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from asr.data.prompt import EncodedPrompt
from asr.serve.api.answers import Answers
from asr.serve.api.metrics import Metrics
from asr.serve.api.settings import Api, ApiSettings
from asr.serve.request import Event, Finished, Piece, Routed, Sampling, ServeRequest
from tests.serve.api.fake_engine import FakeEngine, Row
from tests.serve.api.serving import USER, eventually, listening

COUNTED = 'asr_requests_total{adapter="red",route="auto",status="499"} 1.0'


def endless(row: Row, text: str = "word ", pause: float = 0.005) -> Iterator[Event]:
    yield Routed(row.route)
    while not row.cancelled.wait(pause):
        yield Piece(text, 1)
    yield Piece("", 0)  # never delivered: the fake engine sees the cancellation first


def send(url: str, path: str, **body: Any) -> socket.socket:
    address = urlsplit(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: asr\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/completions", {"prompt": "of red"}),
        ("/v1/responses", {"input": "red"}),
    ],
)
def test_leaving_a_stream_frees_its_row(engine: FakeEngine, path: str, body: Any) -> None:
    engine.script = endless
    with listening(engine) as url:
        with send(url, path, stream=True, **body) as connection:
            assert b"200 OK" in connection.recv(4096)
        assert engine.left.wait(30)
        eventually(lambda: COUNTED in httpx.get(f"{url}/metrics").text)


@pytest.mark.parametrize("body", [{}, {"n": 3}, {"stream": True}])
def test_leaving_before_anything_was_sent_frees_all_rows(
    engine: FakeEngine, body: dict[str, Any]
) -> None:
    def silent(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        row.cancelled.wait(60)
        yield Piece("", 0)

    engine.script = silent
    with listening(engine) as url:
        with send(url, "/v1/chat/completions", messages=USER, **body):
            eventually(lambda: len(engine.rows) == body.get("n", 1))
        eventually(lambda: all(row.cancelled.is_set() for row in engine.rows))


def test_the_rest_of_a_pipelined_connection_is_served(engine: FakeEngine) -> None:
    """Reading on for a disconnect must not swallow the next request."""
    with listening(engine) as url, send(url, "/v1/chat/completions", messages=USER) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: asr\r\nconnection: close\r\n\r\n")
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.endswith(b'{"status":"ok"}')


def test_a_client_that_does_not_read_is_let_go(engine: FakeEngine) -> None:
    engine.script = lambda row: endless(row, "x" * 100_000)
    with listening(engine, write_timeout=0.3) as url:
        with send(url, "/v1/chat/completions", messages=USER, stream=True):
            assert engine.left.wait(60)
        eventually(lambda: COUNTED in httpx.get(f"{url}/metrics").text)


def test_a_slow_client_holds_up_nobody(engine: FakeEngine) -> None:
    def script(row: Row) -> Iterator[Event]:
        if "slow" in row.text:
            yield from endless(row, "x" * 100_000)
        else:
            yield Routed(row.route)
            yield Piece("quick", 1)
            yield row.finished(1)

    engine.script = script
    slow = [{"role": "user", "content": "slow red"}]
    with listening(engine) as url, send(url, "/v1/chat/completions", messages=slow, stream=True):
        eventually(lambda: len(engine.rows) == 1)
        for _ in range(20):
            answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": USER}, timeout=60)
            assert answer.json()["choices"][0]["message"]["content"] == "quick"


def test_pieces_that_wait_become_one(engine: FakeEngine) -> None:
    """However slow the reader, two events and the text are all that is kept."""

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        for number in range(5000):
            yield Piece(f"{number} ", 1)
        yield row.finished(5000)

    engine.script = script
    prompt = EncodedPrompt([5, 6], [False, True])
    api = Api(ApiSettings(), Metrics(engine.status), engine)
    request: Any = SimpleNamespace(
        app=SimpleNamespace(state=SimpleNamespace(api=api)),
        state=SimpleNamespace(request_id="req-1"),
    )

    async def read_late() -> list[Event]:
        wanted = ServeRequest(prompt, "auto", Sampling(5000))
        answers = Answers.submit(request, engine, [wanted])
        await asyncio.to_thread(engine.drain, 30)
        return [event async for _, event in answers.events()]

    routed, piece, end = asyncio.run(read_late())
    assert isinstance(routed, Routed) and isinstance(end, Finished)
    assert piece == Piece("".join(f"{number} " for number in range(5000)), 5000)
