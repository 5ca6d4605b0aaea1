"""The router inside somebody else's server: ``vllm serve ... --middleware asr.serve.RouteAuto``.

A pure ASGI middleware. A request that names the model ``auto``, or none, is decided on, and goes on
with the adapter's name in its place; the decision stands in the response's headers. Requests by
name pass byte for byte. Nothing of a response is held back or changed, but for ``GET /v1/models``,
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

from asr.errors import ConfigError, DataError
from asr.model.request import AUTO
from asr.router import Decision
from asr.serve.api.errors import ApiError
from asr.serve.api.prompts import encode_text
from asr.serve.gateway import Gateway

log = logging.getLogger("asr.serve")

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
        ConfigError: no model directory is named.
        AsrError: see :class:`asr.serve.gateway.Gateway`.
    """

    def __init__(
        self,
        app: ASGIApp,
        model: str | Path | None = None,
        base: str | None = None,
        device: str | None = None,
        base_name: str | None = None,
    ) -> None:
        model = model or os.environ.get("ASR_MODEL")
        if model is None:
            raise ConfigError(
                "RouteAuto has no model: set ASR_MODEL to the folder that asr train wrote"
            )
        self.app = app
        self.gateway = Gateway(
            model,
            base=base or os.environ.get("ASR_BASE"),
            device=device or os.environ.get("ASR_DEVICE") or "cpu",
            dtype=os.environ.get("ASR_DTYPE") or "auto",
            say=log.warning,
        )
        self._base_name = base_name or os.environ.get("ASR_BASE_NAME")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route a request, or hand it on."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ROUTED_PATHS:
            await self._request(scope, receive, send)
        elif scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", "/v1/models"):
            await self._models(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    # -- requests --------------------------------------------------------------------------------

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            return  # the client has gone
        try:
            if len(body) > MAX_BODY:
                raise ApiError(413, f"the body is longer than {MAX_BODY >> 20} MiB")
            wanted = _wants_auto(body)
            if wanted is None:
                await self.app(scope, _replay(body, receive), send)
                return
            decision = await self._decide(scope["path"], wanted)
            adapter = decision.route
            if decision.abstained:
                adapter = await self._upstream_base(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except Exception:
            log.exception("a request could not be routed")
            failed = ApiError(500, "the request could not be routed; the server's log says more")
            await failed.response()(scope, receive, send)
            return
        routed = json.dumps({**wanted, "model": adapter}, ensure_ascii=False).encode()
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["content-length"] = str(len(routed))
        told = _headers_of(decision, adapter)

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                # An engine may tell a route of its own: that it was given a name.
                own = [h for h in message.get("headers", ()) if not h[0].startswith(b"x-asr-")]
                message = {**message, "headers": [*own, *told]}
            await send(message)

        await self.app({**scope, "headers": headers.raw}, _replay(routed, receive), send_told)

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
        asked = {
            **scope,
            **{"method": "GET", "path": "/v1/models", "raw_path": b"/v1/models"},
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


def _headers_of(decision: Decision, adapter: str) -> list[tuple[bytes, bytes]]:
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


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand a body on that was read, and then whatever comes: the end of the connection."""
    handed = False

    async def replayed() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
