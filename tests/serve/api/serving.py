"""Applications over the fake engine, called in-process or on a port of this machine."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
from starlette.testclient import TestClient

from asr.serve.api import ApiSettings, make_app
from asr.serve.api.server import Server, bind, url_of
from tests.serve.api.fake_engine import FakeEngine

USER = [{"role": "user", "content": "tell me of red"}]


def client(engine: FakeEngine | None, **settings: Any) -> TestClient:
    """Call the application in this process."""
    return TestClient(make_app(engine, ApiSettings(**settings)))


@contextlib.contextmanager
def listening(engine: FakeEngine, **settings: Any) -> Iterator[str]:
    """Serve on a free port; yield the URL."""
    app = make_app(engine, ApiSettings(**settings))
    with bind("127.0.0.1", 0, protected=False) as bound, Server(app, bound):
        yield url_of(bound)


def official(url: str, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of a response; every one has OpenAI's shape and an id."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch("req-[0-9a-f]{32}", response.headers["x-request-id"])
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    return body["error"]


def eventually(check: Callable[[], bool]) -> None:
    """Wait until something is so; a hang is the failure."""
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)
