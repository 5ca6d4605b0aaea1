"""The router inside somebody else's server: ``vllm serve ... --middleware asr.serve.RouteAuto``.

A pure ASGI middleware. A request that names the model ``auto``, or none, is decided on, and goes on
with the adapter's name in its place; the decision stands in the response's headers. That happens
when the application asks for the body, which it does once it has let the request in: the engine's
own keys come first, though the middleware stands in front of them. Requests by name pass byte for
byte. Nothing of a response is held back or changed, but for ``GET /v1/models``,
which lists ``auto`` too.

vLLM makes a middleware without arguments, so these environment variables configure it:

- ``ASR_MODEL``: the routed model directory;
- ``ASR_BASE``: where the base is, if not where training found it;
- ``ASR_DEVICE``: where the lower layers run (``cpu``: the engine has the GPU);
- ``ASR_DTYPE``: their type (``auto``: what the processor is good at);
- ``ASR_BASE_NAME``: the name under which the server knows the base, for prompts of no domain; else
  the first model that its ``/v1/models`` lists without a parent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asr.errors import AsrError, ConfigError, DataError
from asr.model.request import AUTO
from asr.router import Decision
from asr.serve.api.errors import ApiError
from asr.serve.api.prompts import encode_text
from asr.serve.gateway import Gateway

log = logging.getLogger("asr.serve")

Headers = list[tuple[bytes, bytes]]

_MODELS = "/v1/models"
ROUTED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
MAX_BODY = 32 << 20
"""Bytes of a body that is read to find its model."""


class RouteAuto:
    """Puts the router in front of a server's application; see the module.

    Args:
        app: the server's application.
        model: the routed model directory; None: ``ASR_MODEL``.
        base: see ``ASR_BASE``.
        device: see ``ASR_DEVICE``.
        base_name: see ``ASR_BASE_NAME``.

    Raises:
        AsrError: see :class:`asr.serve.gateway.Gateway`; where ``model`` is None it is logged, and
            said to the server when that starts, because a server may outlive what is raised here.
    """

    gateway: Gateway

    def __init__(
        self,
        app: ASGIApp,
        model: str | Path | None = None,
        base: str | None = None,
        device: str | None = None,
        base_name: str | None = None,
    ) -> None:
        self.app = app
        self._base_name = base_name or os.environ.get("ASR_BASE_NAME")
        self._broken: AsrError | None = None
        try:
            self.gateway = Gateway(
                model or _model_of_environment(),
                base=base or os.environ.get("ASR_BASE"),
                device=device or os.environ.get("ASR_DEVICE") or "cpu",
                dtype=os.environ.get("ASR_DTYPE") or "auto",
                say=log.warning,
            )
        except AsrError as error:
            if model is not None:
                raise
            log.error("the router cannot start: %s", error)
            self._broken = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route a request, or hand it on."""
        if self._broken is not None:
            await _refuse_all(self._broken, scope, receive, send)
            return
        asked = (scope.get("method"), _path_of(scope)) if scope["type"] == "http" else None
        if asked == ("GET", _MODELS):
            await self._models(scope, receive, send)
        elif asked is not None and asked[0] == "POST" and asked[1] in ROUTED_PATHS:
            await _Request(self, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)

    # -- requests --------------------------------------------------------------------------------

    async def rewritten(self, scope: Scope, body: bytes) -> tuple[bytes, Headers] | None:
        """Return a body with its adapter's name, and headers that tell the route.

        None for one that names a model, or that cannot be read.

        Raises:
            ApiError: it asks to be routed, and cannot be.
        """
        if len(body) > MAX_BODY:
            raise ApiError(413, f"the body is longer than {MAX_BODY >> 20} MiB")
        wanted = _wants_auto(body)
        if wanted is None:
            return None
        try:
            decision = await self._decide(_path_of(scope), wanted)
            adapter = decision.route
            if decision.abstained:
                adapter = await self._upstream_base(scope)
        except ApiError:
            raise
        except Exception as error:
            log.exception("a request could not be routed")
            message = "the request could not be routed; the server's log says more"
            raise ApiError(500, message) from error
        # in ASCII: a JSON text may hold halves of characters, which UTF-8 cannot
        return json.dumps({**wanted, "model": adapter}).encode(), _headers_of(decision, adapter)

    async def _decide(self, path: str, body: Mapping[str, Any]) -> Decision:
        prompt = prompt_of(path, body)
        if path == "/v1/completions":  # raw: all of it counts as the user's
            encoded = await encode_text(self.gateway.base, str(prompt))
            return await asyncio.wrap_future(self.gateway.submit(encoded))
        try:
            return await self.gateway.decide(prompt)
        except DataError as error:
            raise ApiError(400, str(error)) from error

    async def _upstream_base(self, scope: Scope) -> str:
        """The base's name at this server, asked for once."""
        if self._base_name is None:
            listing = await self._listing(scope)
            names = [
                str(entry["id"])
                for entry in listing.get("data", ())
                if isinstance(entry, dict) and "id" in entry and not entry.get("parent")
            ]
            own = [name for name in names if name not in (AUTO, *self.gateway.served.domains)]
            if not own:
                raise ApiError(
                    503,
                    "the prompt belongs to no domain, and the server lists no base model for it; "
                    "set ASR_BASE_NAME",
                )
            self._base_name = own[0]
        return self._base_name

    # -- the list of models ----------------------------------------------------------------------

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, body = await self._answer(scope, receive)
        if start is None:
            return
        if start["status"] == 200:
            try:
                listing = json.loads(body)
                entry = {"id": AUTO, "object": "model", "created": 0, "owned_by": "asr"}
                others = [one for one in listing["data"] if one["id"] != AUTO]
                listing["data"] = [entry, *others]
                body = json.dumps(listing).encode()
            except (ValueError, KeyError, TypeError):
                log.warning("the server's list of models is none that can be added to")
        headers = MutableHeaders(raw=list(start.get("headers", ())))
        headers["content-length"] = str(len(body))
        await send({**start, "headers": headers.raw})
        await send({"type": "http.response.body", "body": body})

    async def _listing(self, scope: Scope) -> dict[str, Any]:
        """The server's own list of models, asked with the headers of a request."""
        keep = (b"authorization", b"host")
        headers = [(name, value) for name, value in scope["headers"] if name in keep]
        listed = scope.get("root_path", "") + _MODELS
        asked = {
            **scope,
            **{"method": "GET", "path": listed, "raw_path": listed.encode()},
            **{"query_string": b"", "headers": headers},
        }

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        start, body = await self._answer(asked, nothing)
        try:
            listing = json.loads(body) if start is not None else {}
        except ValueError:
            listing = {}
        return listing if isinstance(listing, dict) else {}

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[Message | None, bytes]:
        """What the application answers, collected; no start where it answers nothing."""
        starts: list[Message] = []
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                starts.append(message)
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        # An encoded answer could not be read.
        headers = [(n, v) for n, v in scope["headers"] if n != b"accept-encoding"]
        await self.app({**scope, "headers": headers}, receive, collect)
        return (starts[0] if starts else None), b"".join(parts)


class _Request:
    """A request on its way to the application, which has its body routed when it asks for it.

    One that cannot be routed is answered here: the application is told that the client has gone,
    and whatever it makes of that is left out.
    """

    def __init__(self, router: RouteAuto, scope: Scope, receive: Receive, send: Send) -> None:
        self._router = router
        self._scope = {**scope, "headers": list(scope["headers"])}
        self._receive = receive
        self._send = send
        self._told: Headers = []
        self._asked = self._started = self._over = False
        self._refused: ApiError | None = None

    async def run(self) -> None:
        """Let the application answer."""
        try:
            await self._router.app(self._scope, self._receive_routed, self._send_told)
        except Exception:
            if not self._over:
                raise
        if self._refused is not None and not self._started:
            await self._refused.response()(self._scope, self._receive, self._send)

    async def _receive_routed(self) -> Message:
        if self._asked:
            return await self._receive()
        self._asked = True
        body = await _read(self._receive)
        routed = None
        try:
            if body is not None:
                routed = await self._router.rewritten(self._scope, body)
        except ApiError as error:
            self._refused = error
        if body is None or self._refused is not None:
            self._over = True
            return {"type": "http.disconnect"}
        if routed is not None:
            body, self._told = routed
            # in place: the application may have taken the list already
            MutableHeaders(raw=self._scope["headers"])["content-length"] = str(len(body))
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send_told(self, message: Message) -> None:
        if self._over and not self._started:
            return
        if message["type"] == "http.response.start":
            self._started = True
            if self._told:
                # An engine may tell a route of its own: that it was given a name.
                own = [h for h in message.get("headers", ()) if not h[0].startswith(b"x-asr-")]
                message = {**message, "headers": [*own, *self._told]}
        await self._send(message)


def prompt_of(path: str, body: Mapping[str, Any]) -> str | list[dict[str, str]]:
    """What of a request is routed on: its conversation, or the text to go on with.

    Raises:
        ApiError: 400, there is none, it is of several different prompts, or no text.
    """
    if path == "/v1/completions":
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if isinstance(prompt, str) and prompt:
            return prompt
        raise ApiError(
            400,
            "prompt must be one text where the model is auto: several may belong to different "
            "domains, token ids to another tokenizer; name a model, or send one text",
            param="prompt",
        )
    field = "messages" if path == "/v1/chat/completions" else "input"
    given = body.get(field)
    turns: list[dict[str, str]] = []
    if field == "input" and isinstance(body.get("instructions"), str):
        turns.append({"role": "system", "content": body["instructions"]})
    if field == "input" and isinstance(given, str) and given:
        return [*turns, {"role": "user", "content": given}]
    for message in given if isinstance(given, list) else ():
        turn = _turn(message, field)
        if turn is not None:
            turns.append(turn)
    if not any(turn["role"] == "user" for turn in turns):
        raise ApiError(400, f"{field} has no message of the user to route on", param=field)
    while turns[-1]["role"] != "user":  # the router reads the user; the engine gets all of it
        turns.pop()
    return turns


def _turn(message: Any, field: str) -> dict[str, str] | None:
    """A message for the router; None for those that it does not read (tools and their results)."""
    role = message.get("role") if isinstance(message, dict) else None
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        return None
    content = message.get("content")
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        strangers = [kind for kind in kinds if kind not in ("text", "input_text", "output_text")]
        if strangers:
            raise ApiError(
                400,
                f"parts of type '{str(strangers[0])[:80]}' cannot be routed on: the router reads "
                "text only; name a model",
                param=field,
            )
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str) or not content:
        return None
    return {"role": role, "content": content}


def _headers_of(decision: Decision, adapter: str) -> Headers:
    told = {
        "x-asr-adapter": adapter,
        "x-asr-route": "abstained" if decision.abstained else "auto",
        "x-asr-domain": decision.domain,
        "x-asr-score": f"{decision.score:.6f}",
        "x-asr-threshold": f"{decision.threshold:.6f}",
    }
    if decision.margin is not None:
        told["x-asr-margin"] = f"{decision.margin:.6f}"
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in told.items()]


def _wants_auto(body: bytes) -> dict[str, Any] | None:
    """The request, if it leaves the choice to the router; what cannot be read is not ours."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(request, dict) and request.get("model") in (None, AUTO):
        return request
    return None


async def _read(receive: Receive) -> bytes | None:
    """The body, up to the limit and one byte; None if the client goes away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > MAX_BODY:
            return bytes(body)


def _path_of(scope: Scope) -> str:
    """The path below the one that the server is mounted at (vLLM's ``--root-path``)."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def _model_of_environment() -> str:
    model = os.environ.get("ASR_MODEL")
    if not model:
        raise ConfigError(
            "RouteAuto has no model: set ASR_MODEL to the folder that asr train wrote"
        )
    return model


async def _refuse_all(error: AsrError, scope: Scope, receive: Receive, send: Send) -> None:
    """Keep a server from starting; where it does not ask, answer nothing but 503."""
    if scope["type"] == "lifespan":
        await receive()
        message = f"the router cannot start: {error}"
        await send({"type": "lifespan.startup.failed", "message": message})
    elif scope["type"] == "http":
        failed = ApiError(503, "the router could not start; the server's log says why")
        await failed.response()(scope, receive, send)
    else:
        await send({"type": "websocket.close"})
