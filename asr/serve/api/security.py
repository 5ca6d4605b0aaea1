"""Who may ask, and how much: the API key, and the limit on bodies."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asr.serve.api.errors import ApiError
from asr.serve.api.page import FILES

OPEN = frozenset({*FILES, "/health", "/ready"})
"""What needs no key: the page, which asks for one, and what load balancers look at."""


class RequireKey:
    """Lets requests pass that send ``Authorization: Bearer KEY``; all else is 401.

    The comparison takes as long for a nearly right key as for any other.

    Args:
        app: who answers.
        key: what clients must send.
        open_paths: what needs no key.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: frozenset[str] = OPEN) -> None:
        self.app = app
        self._key = key.encode()
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it before its body is read."""
        if scope["type"] != "http" or scope["path"] in self._open or self._right(scope):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "no valid API key; send the header Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _right(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, key = given.partition(" ")
        sent = key.strip().encode("latin-1")  # as the bytes came
        return hmac.compare_digest(sent, self._key) and scheme.lower() == "bearer"


class LimitBody:
    """Reads a request's body before anything else does, and no more of it than the limit.

    What counts are the bytes that come, whatever the header says. (The framework's own limit
    answers in plain text.)
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it as soon as it is known to be too long."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        body = bytearray()
        more = True
        while more:
            too_long = announced.isdecimal() and int(announced[:20]) > self._most
            if too_long or len(body) > self._most:
                await self._refuse(scope, receive, send)
                return
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > self._most:
            await self._refuse(scope, receive, send)
            return
        read: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        await self.app(scope, lambda: _first(read, receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ApiError(
            413,
            f"the body is longer than the {self._most} bytes that this server accepts; send less",
            code="body_too_large",
            headers={"connection": "close"},  # the rest of it is not read
        )
        await error.response()(scope, receive, send)


async def _first(read: list[Message], receive: Receive) -> Message:
    return read.pop() if read else await receive()
