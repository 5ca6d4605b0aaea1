from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from asr.errors import ConfigError
from asr.serve.api import page
from asr.serve.api.server import bind, url_of
from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import USER, client, error_of, listening, official

KEY = "s3cret-ключ"
PROTECTED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/red"),
    ("GET", "/v1/status"),
    ("GET", "/v1/adapters"),
    ("POST", "/v1/adapters"),
    ("DELETE", "/v1/adapters/red"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/route"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer s3cret", f"Basic {KEY}", f"Bearer {KEY}x", KEY],
)
def test_without_the_key_there_is_no_answer(
    engine: FakeEngine, method: str, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    response = client(engine, api_key=KEY).request(method, path, headers=headers)
    error = error_of(response, 401)
    assert error["type"] == "authentication_error"
    assert error["code"] == "invalid_api_key"
    assert error["message"] == "no valid API key; send the header Authorization: Bearer KEY"
    assert response.headers["www-authenticate"] == "Bearer"


def test_with_the_key(engine: FakeEngine) -> None:
    caller = client(engine, api_key=KEY)
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {KEY}".encode()}
        assert caller.get("/v1/models", headers=headers).status_code == 200
    assert caller.get("/metrics", headers=headers).status_code == 200


def test_health_stays_open(engine: FakeEngine) -> None:
    caller = client(engine, api_key=KEY)
    assert caller.get("/health").status_code == 200
    assert caller.get("/ready").status_code == 200


def test_keys_are_compared_in_constant_time(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def seen(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    caller = client(engine, api_key="right")
    error_of(caller.get("/v1/models", headers={"authorization": "Bearer wrong"}), 401)
    assert compared == [(b"wrong", b"right")]


def test_the_official_client_with_and_without_the_key(engine: FakeEngine) -> None:
    with listening(engine, api_key="right") as url:
        assert official(url, "right").chat.completions.create(model="auto", messages=USER).choices
        with pytest.raises(openai.AuthenticationError):
            official(url, "wrong").chat.completions.create(model="auto", messages=USER)


def test_no_other_site_may_read_answers(engine: FakeEngine) -> None:
    caller = client(engine)
    answer = caller.get("/v1/models", headers={"origin": "http://elsewhere"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = caller.options(
        "/v1/chat/completions",
        headers={"origin": "http://elsewhere", "access-control-request-method": "POST"},
    )
    error_of(preflight, 405)


# -- bodies ------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused(engine: FakeEngine) -> None:
    caller = client(engine, max_body=1000)
    body = {"messages": [{"role": "user", "content": "x" * 1000}]}
    error = error_of(caller.post("/v1/chat/completions", json=body), 413)
    assert error["code"] == "body_too_large"
    assert error["message"] == (
        "the body is longer than the 1000 bytes that this server accepts; send less"
    )
    assert engine.requests == []
    small = {"messages": [{"role": "user", "content": "x" * 100}]}
    assert caller.post("/v1/chat/completions", json=small).is_success


def test_the_limit_counts_what_comes_not_what_is_announced(engine: FakeEngine) -> None:
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100_000):
            read += 1
            yield b"x" * 100

    with listening(engine, max_body=1000) as url:
        headers = {"content-type": "application/json"}
        try:
            response = httpx.post(f"{url}/v1/route", content=chunks(), headers=headers)
            error_of(response, 413)
        except httpx.WriteError:
            pass  # the server had closed before all was sent
        assert read < 100_000


def test_an_announced_body_over_the_limit_is_not_waited_for(engine: FakeEngine) -> None:
    with listening(engine, max_body=1000) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(
                b"POST /v1/route HTTP/1.1\r\nhost: asr\r\ncontent-length: 99999999999\r\n\r\n"
            )
            received = b""
            while part := connection.recv(65536):
                received += part
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in received


def test_a_huge_head_is_refused(engine: FakeEngine) -> None:
    with listening(engine) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: asr\r\nx: " + b"y" * 200_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"{url}/health").status_code == 200


# -- the page ----------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_outside(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("index.html", "style.css", "app.js", "other.txt"):
        (tmp_path / name).write_text(f"this is {name}")
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    caller = client(engine, api_key=KEY)
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/style.css", "style.css", "text/css"),
        ("/app.js", "app.js", "text/javascript"),
    ):
        response = caller.get(path)
        assert response.text == f"this is {name}"
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        assert response.headers["x-content-type-options"] == "nosniff"
    headers = {"authorization": f"Bearer {KEY}".encode()}
    for path in ("/other.txt", "/../other.txt", "/%2e%2e/other.txt", "/page/index.html"):
        error_of(caller.get(path, headers=headers), 404)


# -- where it listens --------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(host, 0, protected=False)
    assert str(caught.value) == (
        f"host {host} can be reached from other machines and there is no API key; set one with "
        "ASR_API_KEY or --api-key, or give --host 127.0.0.1"
    )
    with bind("0.0.0.0", 0, protected=True) as bound:
        assert url_of(bound).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_this_machine_needs_none(host: str) -> None:
    with bind(host, 0, protected=False) as bound:
        assert bound.getsockname()[1] > 0


def test_a_port_in_use_and_a_host_that_is_not_here() -> None:
    with bind("127.0.0.1", 0, protected=False) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"^port {port} of 127.0.0.1 cannot be used"
        ) as caught:
            bind("127.0.0.1", port, protected=False)
    assert str(caught.value).endswith("give another with --port, or stop what listens there")
    with pytest.raises(
        ConfigError, match=r"^there is no interface 'no\.such\.host\.invalid'; give"
    ):
        bind("no.such.host.invalid", 0, protected=True)
