"""The router inside another server: the model ``auto`` becomes an adapter's name, nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import threading
import time

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from asr.errors import AsrError, BaseModelError
from asr.model.routed_model import RoutedModel
from asr.serve import RouteAuto
from asr.serve.gateway import Gateway
from asr.train.remove import remove_domain
from tests.routed import INSTRUCTIONS, trained

PROMPTS = [
    f"{INSTRUCTIONS[domain]}\n{domain} item {i} " + "and more " * i
    for i in range(7)
    for domain in INSTRUCTIONS
]


def engine() -> FastAPI:
    """A server that answers with what it was asked."""
    app = FastAPI()
    app.state.seen = []

    @app.post("/v1/{rest:path}")
    async def answer(request: Request):
        body = await request.body()
        app.state.seen.append((request.url.path, body, dict(request.headers)))
        asked = json.loads(body) if body.startswith(b"{") else {}
        if asked.get("stream"):

            async def pieces():
                for piece in ("one", "two", asked["model"]):
                    yield f"data: {piece}\n\n"

            headers = {"x-asr-adapter": "the engine's own"}
            return StreamingResponse(pieces(), headers=headers, media_type="text/event-stream")
        return JSONResponse({"model": asked.get("model")}, 200 if asked else 422)

    @app.get("/v1/models")
    async def models():
        entries = [{"id": name, "parent": "Base-1B"} for name in INSTRUCTIONS]
        return {"object": "list", "data": [{"id": "Base-1B", "parent": None}, *entries]}

    return app


@pytest.fixture(scope="module")
def served():
    app = engine()
    return app, RouteAuto(app, model=trained() / "model", base=str(trained() / "base"))


@pytest.fixture(scope="module")
def routes():
    model = RoutedModel.from_pretrained(trained() / "model", device="cpu")
    return dict(zip(PROMPTS, model.route(PROMPTS), strict=True))


def ask(app, path="/v1/chat/completions", method="POST", **options):
    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def chat(prompt, model="auto", **more):
    body = {"messages": [{"role": "user", "content": prompt}], **more}
    return body if model is None else {"model": model, **body}


def test_each_of_many_requests_gets_its_own_route(served, routes):
    """At once, so that they are decided in batches."""
    _, middle = served

    async def run():
        transport = httpx.ASGITransport(middle)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await asyncio.gather(
                *(client.post("/v1/chat/completions", json=chat(p)) for p in PROMPTS)
            )

    for prompt, found in zip(PROMPTS, asyncio.run(run()), strict=True):
        decision = routes[prompt]
        expected = "Base-1B" if decision.abstained else decision.route
        assert found.json()["model"] == found.headers["x-asr-adapter"] == expected
        assert found.headers["x-asr-domain"] == decision.domain
        assert found.headers["x-asr-route"] == ("abstained" if decision.abstained else "auto")
        assert float(found.headers["x-asr-score"]) == pytest.approx(decision.score, abs=5e-3)
        assert float(found.headers["x-asr-margin"]) == pytest.approx(decision.margin, abs=5e-3)


@pytest.mark.parametrize("model", [None, "auto"])
def test_only_the_model_of_the_body_changes(served, model):
    app, middle = served
    body = chat(PROMPTS[0], model, tools=[{"type": "function"}], temperature=0.25, n=None)
    found = ask(middle, json=body)
    path, seen, headers = app.state.seen[-1]
    assert json.loads(seen) == {**body, "model": found.headers["x-asr-adapter"]}
    assert path == "/v1/chat/completions" and int(headers["content-length"]) == len(seen)


def test_streams_pass_as_they_come(served):
    found = ask(served[1], json=chat(PROMPTS[0], stream=True))
    adapter = found.headers["x-asr-adapter"]
    assert found.headers.get_list("x-asr-adapter") == [adapter] != ["the engine's own"]
    assert found.text == f"data: one\n\ndata: two\n\ndata: {adapter}\n\n"


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(chat("x", "sum"), indent=3).encode(),
        json.dumps(chat("x", "Base-1B")).encode(),
        b"no json \xff",
        b"[1, 2]",
        b"",
    ],
)
def test_what_names_a_model_or_is_no_request_passes_byte_for_byte(served, body):
    app, middle = served
    found = ask(middle, content=body, headers={"x-own": "1"})
    _, seen, headers = app.state.seen[-1]
    assert seen == body and headers["x-own"] == "1"
    assert not [name for name in found.headers if name.startswith("x-asr")]


def test_other_paths_are_not_read(served):
    app, middle = served
    body = json.dumps({"model": "auto"}).encode()
    ask(middle, "/v1/embeddings", content=body)
    assert app.state.seen[-1][:2] == ("/v1/embeddings", body)


def test_the_list_of_models_has_auto_too(served):
    found = ask(served[1], "/v1/models", "GET")
    assert [entry["id"] for entry in found.json()["data"]] == ["auto", "Base-1B", *INSTRUCTIONS]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": PROMPTS[0]}),
        ("/v1/completions", {"prompt": [PROMPTS[0]]}),
        ("/v1/responses", {"input": PROMPTS[0]}),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPTS[0]}]}]},
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]},
                    {"role": "assistant", "content": None, "tool_calls": [{}]},
                    {"role": "tool", "content": "7"},
                ]
            },
        ),
    ],
)
def test_every_kind_of_prompt_is_routed(served, routes, path, body):
    found = ask(served[1], path, json=body)
    assert found.status_code == 200
    assert found.headers["x-asr-domain"] == routes[PROMPTS[0]].domain


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/chat/completions", {}, "messages has no message of the user to route on"),
        ("/v1/chat/completions", {"messages": 5}, "messages has no message of the user"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "parts of type 'image_url' cannot be routed on: the router reads text only",
        ),
        ("/v1/chat/completions", chat("  "), "the prompt has no text to route on"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt must be one text where the model"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt must be one text where the model is auto"),
        ("/v1/responses", {"input": []}, "input has no message of the user to route on"),
    ],
)
def test_what_cannot_be_routed_on_is_an_error_in_openais_shape(served, path, body, message):
    app, middle = served
    before = len(app.state.seen)
    found = ask(middle, path, json={**body, "model": "auto"})
    assert found.status_code == 400 and found.json()["error"]["message"].startswith(message)
    assert len(app.state.seen) == before


def test_a_body_beyond_the_limit_is_refused(served, monkeypatch):
    monkeypatch.setattr("asr.serve.middleware.MAX_BODY", 100)
    found = ask(served[1], json=chat("x" * 200))
    assert found.status_code == 413 and found.json()["error"]["type"] == "invalid_request_error"


def test_a_client_that_goes_away_reaches_nobody(served):
    app, middle = served
    before = len(app.state.seen)
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    async def send(message):
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    scope |= {"query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http"}
    asyncio.run(middle(scope, receive, send))
    assert len(app.state.seen) == before


class Guarded:
    """Lets requests with its key through, as engines do behind their middleware."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if (b"authorization", b"Bearer k") in scope["headers"]:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)


def test_the_engines_own_key_comes_first(served, monkeypatch):
    """Whoever lacks it learns nothing of the router, and gives it nothing to do."""
    app = engine()
    monkeypatch.setattr(served[1], "app", Guarded(app))
    monkeypatch.setattr(served[1], "_decide", None)  # it would raise
    for body in (chat(PROMPTS[0]), {"model": "auto"}):
        found = ask(served[1], json=body)
        assert (found.status_code, found.json()) == (401, {"error": "Unauthorized"})
        assert not [name for name in found.headers if name.startswith("x-asr")]
    monkeypatch.undo()
    monkeypatch.setattr(served[1], "app", Guarded(app))
    found = ask(served[1], json=chat(PROMPTS[0]), headers={"authorization": "Bearer k"})
    assert found.status_code == 200 and found.headers["x-asr-route"] == "auto"
    assert len(app.state.seen) == 1


def test_the_base_is_asked_for_with_the_clients_key(served, monkeypatch):
    """The list of models is behind the key, too; it is asked for once."""
    asked = []

    class Counting(Guarded):
        async def __call__(self, scope, receive, send):
            asked.append(scope["path"])
            await super().__call__(scope, receive, send)

    monkeypatch.setattr(served[1], "app", Counting(engine()))
    monkeypatch.setattr(served[1], "_base_name", None)
    decide = served[1]._decide

    async def abstain(path, body):
        return dataclasses.replace(await decide(path, body), abstained=True, route="base")

    monkeypatch.setattr(served[1], "_decide", abstain)
    for _ in range(2):
        found = ask(served[1], json=chat(PROMPTS[0]), headers={"authorization": "Bearer k"})
        assert found.json() == {"model": "Base-1B"}
        assert found.headers["x-asr-adapter"] == "Base-1B"
        assert found.headers["x-asr-route"] == "abstained"
    assert asked.count("/v1/models") == 1


def test_halves_of_characters_reach_the_engine_as_they_were_sent(served):
    app, middle = served
    body = json.dumps({**chat(PROMPTS[0]), "user": "\ud800 \u00e9"}).encode()
    assert ask(middle, content=body).status_code == 200
    assert json.loads(app.state.seen[-1][1])["user"] == "\ud800 \u00e9"


def test_a_server_mounted_below_a_path(served, monkeypatch):
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["path"], await receive()))
        await JSONResponse({})(scope, receive, send)

    monkeypatch.setattr(served[1], "app", app)

    async def run():
        transport = httpx.ASGITransport(served[1], root_path="/pool")
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await client.post("/pool/v1/chat/completions", json=chat(PROMPTS[0]))

    assert asyncio.run(run()).headers["x-asr-route"] == "auto"
    [(path, message)] = seen
    assert path == "/pool/v1/chat/completions"
    assert json.loads(message["body"])["model"] in INSTRUCTIONS


@pytest.mark.parametrize("model", ["sum", "auto"])
def test_what_fails_in_the_engine_is_the_engines(served, monkeypatch, model):
    async def app(scope, receive, send):
        await receive()
        raise RuntimeError("the engine's")

    monkeypatch.setattr(served[1], "app", app)
    with pytest.raises(RuntimeError, match="the engine's"):
        ask(served[1], json=chat(PROMPTS[0], model))


def started(app):
    """What a server is told when it starts."""
    sent = []

    async def run():
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive():
            return next(messages)

        async def send(message):
            sent.append(message)

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    asyncio.run(run())
    return sent


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "RouteAuto has no model: set ASR_MODEL to the folder that asr train wrote"),
        ({"ASR_MODEL": "nothing"}, "no folder 'nothing'; give the folder that asr train wrote"),
        ({"ASR_MODEL": "MODEL", "ASR_DTYPE": "float16x"}, "unknown dtype 'float16x'"),
    ],
)
def test_a_server_does_not_start_with_a_router_that_cannot(
    monkeypatch, caplog, environment, message
):
    """Servers take an exception here for an application without a lifespan, and go on."""
    for name in ("ASR_MODEL", "ASR_BASE", "ASR_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("MODEL", str(trained() / "model")))
    app = engine()
    app.add_middleware(RouteAuto)  # as vLLM does
    [said] = started(app)
    assert said["type"] == "lifespan.startup.failed"
    assert said["message"].startswith(f"the router cannot start: {message}")
    assert message in caplog.text
    for path, method in (("/v1/models", "GET"), ("/v1/chat/completions", "POST")):
        found = ask(app, path, method)
        assert found.status_code == 503
        error = found.json()["error"]["message"]
        assert error == "the router could not start; the server's log says why"


def test_configuration_by_environment(monkeypatch):
    monkeypatch.setenv("ASR_MODEL", str(trained() / "model"))
    monkeypatch.setenv("ASR_BASE", str(trained() / "base"))
    monkeypatch.setenv("ASR_BASE_NAME", "the-base")
    monkeypatch.setenv("ASR_DTYPE", "float32")
    app = engine()
    app.add_middleware(RouteAuto)
    assert [message["type"] for message in started(app)] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert ask(app, json=chat(PROMPTS[0])).status_code == 200


def test_a_model_that_is_given_is_refused_at_once(tmp_path):
    with pytest.raises(AsrError, match="no folder"):
        RouteAuto(engine(), model=tmp_path / "nothing")


def test_a_removed_domain_is_not_routed_to_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr("asr.serve.served._LOOK_SECONDS", 0.0)
    shutil.copytree(trained() / "model", tmp_path / "model")
    gateway = Gateway(tmp_path / "model", base=str(trained() / "base"))
    first = asyncio.run(gateway.decide(PROMPTS[0])).domain
    remove_domain(tmp_path / "model", first)
    deadline = time.monotonic() + 20
    while first in gateway.served.domains and time.monotonic() < deadline:
        time.sleep(0.02)
    assert asyncio.run(gateway.decide(PROMPTS[0])).domain in set(INSTRUCTIONS) - {first}


def test_decisions_from_many_threads_are_each_their_own(routes):
    gateway = Gateway(trained() / "model", base=str(trained() / "base"))
    found = {}

    def work(prompt):
        found[prompt] = asyncio.run(gateway.decide(prompt))

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in PROMPTS:
        expected = np.array(list(routes[prompt].scores.values()))
        np.testing.assert_allclose(list(found[prompt].scores.values()), expected, atol=5e-3)


def test_another_base_is_refused(tmp_path):
    from tests.tiny_models import save_tiny_base

    save_tiny_base(tmp_path, "qwen3")
    with pytest.raises(BaseModelError):
        Gateway(trained() / "model", base=str(tmp_path))
