"""The reverse proxy: forwarding to an engine on a real port, and what is asked at the start."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from fastapi import FastAPI, Request, Response
from httpcore._backends.auto import AutoBackend
from starlette.responses import JSONResponse, StreamingResponse
from starlette.testclient import TestClient

from asr.errors import AdapterError, AsrError, ConfigError
from asr.serve.api.security import LimitBody, RequireKey
from asr.serve.api.server import Server, bind, url_of
from asr.serve.proxy import Drained, Forward
from asr.serve.upstream import Upstream, check_upstream, server_url
from tests.routed import trained
from tests.serve.api.serving import eventually

CHAT = "/v1/chat/completions"


class Engine:
    """An upstream that keeps what it was asked, and streams when a test lets it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.go = threading.Semaphore(0)
        self.left = threading.Event()
        self.models: Any = []
        self.status = 200
        self.app = FastAPI()
        self.app.add_api_route("/v1/models", self._models)
        self.app.add_api_route(CHAT, self._chat, methods=["POST"])
        self.app.add_api_route("/{path:path}", self._echo, methods=["GET", "POST", "DELETE"])

    async def _keep(self, request: Request) -> bytes:
        body = await request.body()
        target = request.scope["raw_path"].decode() + "?" + request.scope["query_string"].decode()
        self.asked.append((request.method, target, dict(request.headers), body))
        return body

    async def _models(self, request: Request) -> Response:
        await self._keep(request)
        return JSONResponse({"object": "list", "data": self.models}, self.status)

    async def _echo(self, request: Request) -> Response:
        body = await self._keep(request)
        headers = {"content-encoding": "gzip", "connection": "x-private", "x-private": "1"}
        response = Response(gzip.compress(body), headers=headers)
        response.headers.append("set-cookie", "a=1")
        response.headers.append("set-cookie", "b=2")
        return response

    async def _chat(self, request: Request) -> Response:
        asked = json.loads(await self._keep(request))
        if status := asked.get("fail"):
            error = {"message": "told to", "type": "x", "param": None, "code": None}
            return JSONResponse({"error": error}, status, {"retry-after": "7"})
        return StreamingResponse(
            self._words(asked.get("words", 3), asked.get("broken")),
            media_type="text/event-stream",
            headers={"x-asr-adapter": "red"},
        )

    async def _words(self, count: int, broken: bool) -> AsyncIterator[str]:
        try:
            for number in range(count):
                while not self.go.acquire(blocking=False):
                    await asyncio.sleep(0.002)
                yield f"data: {number}\n\n"
            if broken:
                raise RuntimeError("broken")
        except asyncio.CancelledError:
            self.left.set()
            raise


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    with bind("127.0.0.1", 0, protected=True) as bound, Server(app, bound):
        yield url_of(bound)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def engine_url(engine: Engine) -> Iterator[str]:
    with listening(engine.app) as url:
        yield url


@pytest.fixture
def url(engine_url: str) -> Iterator[str]:
    with listening(Forward(engine_url)) as url:
        yield url


def refusal(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (
        "server_error" if status >= 500 else "invalid_request_error",
        code,
    )
    return error["message"]


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads the head of each request and lets ``answer`` do what it likes."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    requests.append(connection.recv(65536))
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


# -- what is passed on ---------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_sent(engine: Engine, url: str) -> None:
    headers = {
        **{"authorization": "Bearer mine", "x-own": "yes", "accept-encoding": "gzip"},
        **{"connection": "x-hop", "x-hop": "1", "te": "trailers", "keep-alive": "3"},
    }
    answer = httpx.post(f"{url}/a%2Fb/c?x=%20&y", content=b"\x00body", headers=headers)
    [(method, target, seen, body)] = engine.asked
    assert (method, target, body) == ("POST", "/a%2Fb/c?x=%20&y", b"\x00body")
    assert seen["authorization"] == "Bearer mine" and seen["x-own"] == "yes"
    assert seen["content-length"] == "5"
    assert not {"x-hop", "te", "keep-alive"} & set(seen)
    assert answer.content == b"\x00body"


def test_an_answer_arrives_as_it_was_sent(engine: Engine, url: str) -> None:
    with httpx.stream("POST", f"{url}/x", content=b"much", headers={"accept-encoding": "a"}) as got:
        raw = b"".join(got.iter_raw())
    assert engine.asked[0][2]["accept-encoding"] == "a"
    assert gzip.decompress(raw) == b"much"  # not unpacked on the way
    assert got.headers["content-encoding"] == "gzip"
    assert got.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert len(got.headers.get_list("date")) == 1
    assert "x-private" not in got.headers


def test_nothing_is_added_that_the_client_did_not_send(engine: Engine, url: str) -> None:
    host = url.removeprefix("http://")
    with socket.create_connection(host.split(":")) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nhost: me\r\nconnection: close\r\n\r\n")
        while connection.recv(65536):
            pass
    [(method, _, seen, body)] = engine.asked
    assert (method, body, set(seen)) == ("GET", b"", {"host"})


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_errors_of_the_engine_pass_through(engine: Engine, url: str, status: int) -> None:
    answer = httpx.post(f"{url}{CHAT}", json={"fail": status})
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == "told to"
    assert answer.headers["retry-after"] == "7"
    assert len(engine.asked) == 1


def test_chunks_pass_as_they_come(engine: Engine, url: str) -> None:
    """Each word is let go only after the one before it has arrived."""
    with httpx.stream("POST", f"{url}{CHAT}", json={"words": 20}, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-asr-adapter"] == "red"
        parts = answer.iter_raw()
        for number in range(20):
            engine.go.release()
            assert next(parts) == f"data: {number}\n\n".encode()
        assert list(parts) == []


def test_many_clients_at_once_get_their_own(engine: Engine, url: str) -> None:
    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=150)) as client:
            asking = [client.post(f"{url}/{n}", content=b"%d" % n, timeout=60) for n in range(150)]
            return await asyncio.gather(*asking)

    assert [answer.content for answer in asyncio.run(ask_all())] == [b"%d" % n for n in range(150)]


def test_keys(engine: Engine, engine_url: str) -> None:
    """The engine's key takes the place of the client's; the proxy's own never leaves it."""
    mine = {"authorization": "Bearer mine"}
    for settings, expected in (
        ({"key": "theirs"}, "Bearer theirs"),
        ({"key": "theirs", "keep_authorization": False}, "Bearer theirs"),
        ({"keep_authorization": False}, None),
    ):
        with TestClient(Forward(engine_url, **settings)) as client:
            assert client.get("/x", headers=mine).status_code == 200
        assert engine.asked.pop()[2].get("authorization") == expected


def test_only_health_is_open_where_clients_need_a_key(engine: Engine, engine_url: str) -> None:
    guarded = RequireKey(Forward(engine_url), key="k", open_paths=frozenset({"/health"}))
    with TestClient(guarded) as client:
        assert client.get("/health").status_code == 200
        assert client.post("/").status_code == 401
        assert client.post("/", headers={"authorization": "Bearer k"}).status_code == 200
    assert [target for _, target, *_ in engine.asked] == ["/health?", "/?"]


def test_an_engine_under_a_path(engine: Engine, engine_url: str) -> None:
    with listening(Forward(f"{engine_url}/pool/1")) as url:
        assert httpx.get(f"{url}/v1/x").status_code == 200
    assert engine.asked[0][1] == "/pool/1/v1/x?"


@pytest.mark.parametrize("target", ["/../x", "/a/./b", "http://elsewhere/x", "*"])
def test_targets_that_are_no_path_are_refused(engine: Engine, url: str, target: str) -> None:
    with socket.create_connection(url.removeprefix("http://").split(":")) as connection:
        head = f"GET {target} HTTP/1.1\r\nhost: me\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode())
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 400 ") and b'"code":"bad_target"' in received
    assert engine.asked == []


def test_the_limit_on_bodies_holds(engine: Engine, engine_url: str) -> None:
    with TestClient(LimitBody(Forward(engine_url), most=10)) as client:
        assert client.post("/x", content=b"x" * 11).status_code == 413
        assert client.post("/x", content=b"x" * 10).content == b"x" * 10
    assert len(engine.asked) == 1


def test_no_client_gets_the_cookies_of_another(engine: Engine, url: str) -> None:
    assert httpx.get(f"{url}/x").cookies["a"] == "1"
    httpx.get(f"{url}/x")
    assert "cookie" not in engine.asked[1][2]


def test_an_answer_without_a_body() -> None:
    def head_only(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")

    with raw_server(head_only) as (engine_url, requests), listening(Forward(engine_url)) as url:
        answer = httpx.head(f"{url}/x", timeout=60)
        assert (answer.status_code, answer.headers["content-length"]) == (200, "10")
        assert requests[0].startswith(b"HEAD /x HTTP/1.1\r\n")


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [0, 2])
def test_a_client_that_leaves_ends_the_request_at_the_engine(
    engine: Engine, url: str, words: int
) -> None:
    for _ in range(words):
        engine.go.release()
    content = json.dumps({"words": 100}).encode()
    with socket.create_connection(url.removeprefix("http://").split(":")) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: me\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        if words:
            assert b"200 OK" in connection.recv(4096)
        eventually(lambda: len(engine.asked) == 1)
    assert engine.left.wait(30)


def test_a_client_that_leaves_before_the_engine_says_anything() -> None:
    gone = threading.Event()

    def wait(connection: socket.socket) -> None:
        if connection.recv(1) == b"":  # the proxy has closed
            gone.set()

    with raw_server(wait) as (engine_url, _), listening(Forward(engine_url)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{url}/x", timeout=httpx.Timeout(30, read=0.2))
        assert gone.wait(30)


def test_an_engine_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with listening(Forward(f"http://127.0.0.1:{port}")) as url:
        message = refusal(httpx.get(f"{url}/x"), 502, "engine_unreachable")
    assert message == "the engine behind this proxy cannot be reached; try again later"
    assert str(port) in caplog.text  # said to the operator alone


@pytest.mark.parametrize(
    ("failures", "status", "tried"), [(0, 200, 1), (1, 200, 2), (2, 502, 2), (9, 502, 2)]
)
@pytest.mark.parametrize("kind", [httpcore.ConnectError, httpcore.ConnectTimeout])
def test_a_connection_is_tried_twice(
    engine: Engine,
    engine_url: str,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    status: int,
    tried: int,
    kind: type[Exception],
) -> None:
    connect, attempts = AutoBackend.connect_tcp, []

    async def failing(self: AutoBackend, *args: Any, **settings: Any) -> Any:
        attempts.append(1)
        if len(attempts) <= failures:
            raise kind("no")
        return await connect(self, *args, **settings)

    monkeypatch.setattr(AutoBackend, "connect_tcp", failing)
    with TestClient(Forward(engine_url)) as client:
        answer = client.post("/x", content=b"once")
    assert (answer.status_code, len(attempts)) == (status, tried)
    assert len(engine.asked) == (status == 200)


def test_what_was_sent_is_never_sent_again() -> None:
    with raw_server(lambda connection: None) as (engine_url, requests):
        with listening(Forward(engine_url)) as url:
            answer = httpx.post(f"{url}/x", content=b"body", timeout=60)
        message = refusal(answer, 502, "engine_failed")
        assert message == "the engine behind this proxy closed the connection without an answer"
        assert len(requests) == 1


def test_what_is_no_http_is_an_error() -> None:
    with (
        raw_server(lambda connection: connection.sendall(b"SSH-2.0-x\r\n")) as (engine_url, _),
        listening(Forward(engine_url)) as url,
    ):
        refusal(httpx.get(f"{url}/x", timeout=60), 502, "engine_failed")


def test_an_engine_that_says_nothing() -> None:
    with (
        raw_server(lambda connection: connection.recv(1)) as (engine_url, requests),
        listening(Forward(engine_url, silence=0.1)) as url,
    ):
        message = refusal(httpx.get(f"{url}/x", timeout=60), 504, "engine_timeout")
        assert message == "the engine behind this proxy said nothing for too long; try again later"
        assert len(requests) == 1


def test_an_answer_that_breaks_off_does_not_look_whole(engine: Engine, url: str) -> None:
    engine.go.release()
    with httpx.stream("POST", f"{url}{CHAT}", json={"words": 1, "broken": True}) as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"data: 0\n\n"
        with pytest.raises(httpx.RemoteProtocolError):
            next(parts)
    assert httpx.get(f"{url}/x").status_code == 200


def test_running_answers_end_and_new_ones_are_refused(engine: Engine, engine_url: str) -> None:
    drained = Drained(Forward(engine_url))
    with listening(drained) as url:
        with httpx.stream("POST", f"{url}{CHAT}", json={"words": 2}, timeout=60) as answer:
            assert drained.drain(0) is False
            refusal(httpx.get(f"{url}/x"), 503, "shutting_down")
            engine.go.release(2)
            assert answer.read() == b"data: 0\n\ndata: 1\n\n"
        assert drained.drain(30) is True


# -- what is asked at the start ------------------------------------------------------------------


def entry(name: str, parent: str | None = None, **more: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "parent": parent, **more}


def domains(parent: str | None = "b") -> list[dict[str, Any]]:
    return [entry(name, parent) for name in ("red", "sum", "rev")]


@pytest.mark.parametrize(
    ("models", "base_name", "found"),
    [
        ([entry("b"), *domains()], None, "b"),
        ([*domains(), entry("other", "b"), entry("b")], None, "b"),
        ([entry("b", root="/m"), entry("alias", root="/m"), *domains()], None, "b"),
        ([entry("b"), entry("c"), *domains()], "c", "c"),
        ([entry("auto"), entry("base"), *domains()], None, "base"),
    ],
)
def test_the_base_is_found(
    engine: Engine, engine_url: str, models: Any, base_name: str | None, found: str
) -> None:
    engine.models = models
    upstream = check_upstream(
        trained() / "model", f"{engine_url}/v1/", base_name=base_name, key="theirs"
    )
    assert upstream == Upstream(engine_url, found, ("red", "sum", "rev"))
    assert engine.asked[0][2]["authorization"] == "Bearer theirs"


@pytest.mark.parametrize(
    ("models", "base_name", "kind", "message"),
    [
        (
            [entry("b"), entry("red", "b")],
            None,
            AdapterError,
            "the engine at URL does not serve sum, rev of the domains of MODEL; asr export MODEL "
            "--to vllm prints the command that serves all",
        ),
        (
            domains(),
            None,
            ConfigError,
            "the engine at URL lists no base; give its name with --base-name",
        ),
        (
            [entry("b"), entry("c"), *domains()],
            None,
            ConfigError,
            "the engine at URL lists several models that may be the base (b, c); give its name "
            "with --base-name",
        ),
        (
            [entry("basic"), *domains()],
            "basis",
            AdapterError,
            "the engine at URL: unknown base name 'basis' (did you mean 'basic'?); there are: "
            "basic",
        ),
        (
            ["no model"],
            None,
            ConfigError,
            "URL/v1/models is no list of models (status 200); give the address of an "
            "OpenAI-compatible engine with --engine-url",
        ),
    ],
)
def test_engines_that_do_not_fit(
    engine: Engine,
    engine_url: str,
    models: Any,
    base_name: str | None,
    kind: type[AsrError],
    message: str,
) -> None:
    engine.models = models
    model = trained() / "model"
    with pytest.raises(kind) as caught:
        check_upstream(model, engine_url, base_name=base_name)
    assert str(caught.value).replace(engine_url, "URL").replace(str(model), "MODEL") == message


@pytest.mark.parametrize(
    ("status", "key", "message"),
    [
        (401, None, "wants an API key; give it in ASR_ENGINE_KEY or with --engine-key"),
        (403, "k", "wants another API key; give it in ASR_ENGINE_KEY or with --engine-key"),
        (503, None, "is not ready (503 for /v1/models); try again when it is"),
    ],
)
def test_engines_that_refuse(
    engine: Engine, engine_url: str, status: int, key: str | None, message: str
) -> None:
    engine.status = status
    with pytest.raises(ConfigError) as caught:
        check_upstream(trained() / "model", engine_url, key=key)
    assert str(caught.value) == f"the engine at {engine_url} {message}"


def test_no_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError) as caught:
        check_upstream(trained() / "model", f"http://127.0.0.1:{port}")
    start = f"no engine answers at http://127.0.0.1:{port} ("
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith("); start it, or give another --engine-url")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/pool/v1", "https://h/pool"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert server_url("--url", text) == url


@pytest.mark.parametrize(
    "text", ["", "h:8000", "127.0.0.1:8000", "ftp://h", "http://", "http://h:x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_url("--url", text)
    assert str(caught.value) == (
        f"--url is '{text}'; give an address such as http://127.0.0.1:8000"
    )


@pytest.mark.parametrize("text", ["http://u:p@h", "http://h/?x=1", "http://h/#x"])
def test_addresses_hold_no_more(text: str) -> None:
    with pytest.raises(ConfigError, match="--url holds more than an address"):
        server_url("--url", text)


def test_a_folder_that_is_no_model(engine_url: str, tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="is not a routed model directory"):
        check_upstream(tmp_path, engine_url)
