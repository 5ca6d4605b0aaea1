"""A reverse proxy that routes: for engines that take no middleware.

:func:`make_proxy` puts the router (:mod:`asr.serve.middleware`) in front of :class:`Forward`, which
hands every request to the engine as it is and every answer back as it comes. Between requests
nothing is kept but idle connections, so any number of proxies may stand side by side.

It does not know what requests mean, nor what the engine behind it can do: whatever path is asked
for is asked for there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asr.serve.api.errors import ApiError
from asr.serve.api.security import LimitBody, RequireKey

_log = logging.getLogger("asr.serve")

_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""Headers about one connection, not about a message (RFC 9110, section 7.6.1)."""

_REMADE_OF_REQUESTS = frozenset({b"host", b"content-length", b"expect"})
_REMADE_OF_ANSWERS = frozenset({b"date"})
"""Headers that the other side's software writes itself."""

_CONNECT = 5.0
_SILENCE = 600.0
_WRITE = 60.0
_KEEP_ALIVE = 2.0
"""Seconds a connection may idle; less than engines allow, so that none is used while it closes."""

Headers = list[tuple[bytes, bytes]]


def make_proxy(
    model: Path,
    engine_url: str,
    *,
    base: str | None = None,
    base_name: str | None = None,
    upstream_key: str | None = None,
    api_key: str | None = None,
    max_body: int = 8 << 20,
    device: str = "cpu",
) -> Drained:
    """Return an application that routes requests and forwards them to an engine.

    Args:
        model: routed model directory; its base is read up to the router layer.
        engine_url: the engine's address, as :attr:`asr.serve.upstream.Upstream.url`.
        base: where the base is, if not where training found it.
        base_name: the base's name at the engine.
        upstream_key: the engine's API key; where it is None, that of each client is passed on.
        api_key: what clients must send; it is never passed on.
        max_body: most bytes of a request's body.
        device: the router's.

    Raises:
        AsrError: see :class:`asr.serve.middleware.RouteAuto`.
    """
    from asr.serve.middleware import RouteAuto

    forward = Forward(engine_url, key=upstream_key, keep_authorization=api_key is None)
    app: ASGIApp = RouteAuto(forward, model=model, base=base, device=device, base_name=base_name)
    app = LimitBody(app, most=max_body)
    if api_key is not None:
        # the engine's own pages are not ours to open
        app = RequireKey(app, key=api_key, open_paths=frozenset({"/health"}))
    return Drained(app)


class Forward:
    """Hands each request to an engine, and its answer back, chunk by chunk.

    A connection that cannot be made is tried once more. Once a request, or a part of it, was sent,
    it is not sent again: the engine may be at work on it. An answer that breaks off breaks off
    here too, so that the client sees that it is not whole.

    Args:
        engine_url: scheme, host, port, and where the engine has one, a path.
        key: the engine's API key, in place of the client's.
        keep_authorization: without ``key``, pass on the client's ``Authorization``.
        silence: seconds that the engine may say nothing.
    """

    def __init__(
        self,
        engine_url: str,
        *,
        key: str | None = None,
        keep_authorization: bool = True,
        silence: float = _SILENCE,
    ) -> None:
        self._url = httpx.URL(engine_url)
        self._key = key
        self._keep_authorization = keep_authorization
        self._timeout = httpx.Timeout(_CONNECT, read=silence, write=_WRITE, pool=None)
        # how many may ask is for the engine to say
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE
        )
        # no client around it, which would keep cookies, add headers of its own, such as which
        # encodings it reads, and take web proxies from the environment
        self._transport = httpx.AsyncHTTPTransport(retries=1, limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request; return when its answer, its client or its connection has ended."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._serve(scope, receive, send)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    # -- inside ----------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            return
        forwarding = asyncio.ensure_future(self._forward(scope, receive, send, body))
        leaving = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({forwarding, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # a cancelled request closes its connection, which tells the engine to stop
            for task in (forwarding, leaving):
                task.cancel()
            await asyncio.gather(forwarding, leaving, return_exceptions=True)
        if not forwarding.cancelled():
            forwarding.result()

    async def _forward(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        try:
            response = await self._transport.handle_async_request(self._request(scope, body))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.warning("%s: %s", self._url, error or type(error).__name__)
            await _failure(error).response()(scope, receive, send)
            return
        try:
            headers = _kept(response.headers.raw, _REMADE_OF_ANSWERS)
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": [(name.lower(), value) for name, value in headers],
                }
            )
            async for chunk in response.aiter_raw():  # as it came, compressed or not
                await _write(send, chunk, more=True)
            await _write(send, b"", more=False)
        except httpx.HTTPError as error:
            _log.warning("%s: an answer broke off: %s", self._url, error or type(error).__name__)
        except TimeoutError:
            _log.debug("a client does not read its answer")
        finally:
            await response.aclose()

    def _request(self, scope: Scope, body: bytes) -> httpx.Request:
        """Return the request to the engine.

        Raises:
            httpx.InvalidURL: the target is no path.
        """
        target: bytes = scope.get("raw_path") or scope["path"].encode()
        segments = target.split(b"/")
        # an address, or *; or a path whose dots would lead out of the engine's own
        if segments[0] or b"." in segments or b".." in segments or not target.isascii():
            raise httpx.InvalidURL("not a path")
        target = self._url.raw_path.rstrip(b"/") + target
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = _kept(scope["headers"], _REMADE_OF_REQUESTS)
        if self._key or not self._keep_authorization:
            headers = [pair for pair in headers if pair[0] != b"authorization"]
        if self._key:
            headers.append((b"authorization", f"Bearer {self._key}".encode()))
        return httpx.Request(
            scope["method"],
            self._url.copy_with(raw_path=target),
            headers=headers,
            content=body or None,
            extensions={"timeout": self._timeout.as_dict()},
        )

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class Drained:
    """Counts the requests that are being answered, so that they can end before the server does.

    Args:
        app: who answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._running = 0
        self._closing = False
        self._changed = threading.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it once the server is stopping."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self._changed:
            closing = self._closing
            self._running += not closing
        if closing:
            error = ApiError(
                503,
                "the server is shutting down and takes no new requests; send it to another one",
                code="shutting_down",
            )
            await error.response()(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for running ones; called from another thread.

        Returns:
            Whether all have ended within ``seconds``.
        """
        with self._changed:
            self._closing = True
            return self._changed.wait_for(lambda: self._running == 0, seconds)


def _kept(headers: Iterable[tuple[bytes, bytes]], remade: frozenset[bytes]) -> Headers:
    """Return the headers that are about the message and that nobody writes anew."""
    pairs = [(bytes(name).lower(), name, value) for name, value in headers]
    named = b",".join(value for key, _, value in pairs if key == b"connection")
    left_out = _HOP_BY_HOP | remade | {token.strip().lower() for token in named.split(b",")}
    return [(name, value) for key, name, value in pairs if key not in left_out]


def _failure(error: httpx.HTTPError | httpx.InvalidURL) -> ApiError:
    """Return what a client is told of an engine that gave no answer."""
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return ApiError(400, "the request's target is no path of this server", code="bad_target")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        message = "the engine behind this proxy cannot be reached; try again later"
        return ApiError(502, message, code="engine_unreachable")
    if isinstance(error, httpx.ReadTimeout):
        message = "the engine behind this proxy said nothing for too long; try again later"
        return ApiError(504, message, code="engine_timeout")
    message = "the engine behind this proxy closed the connection without an answer"
    return ApiError(502, message, code="engine_failed")


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body, None where its client went away."""
    body = bytearray()
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, chunk: bytes, *, more: bool) -> None:
    """Send a part of an answer.

    Raises:
        TimeoutError: the client does not read.
    """
    async with asyncio.timeout(_WRITE):
        await send({"type": "http.response.body", "body": chunk, "more_body": more})
