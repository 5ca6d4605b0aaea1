"""Around every request: its id, and an answer to errors that nobody foresaw."""

from __future__ import annotations

import logging
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asr.serve.api.errors import internal
from asr.serve.api.metrics import Metrics

_log = logging.getLogger("asr.serve")

ANSWERING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Paths whose requests are counted."""


class Boundary:
    """Gives each request an id, counts those that failed, and hides what broke inside.

    The id stands in ``x-request-id``, in the log beside the traceback, and in the answer of a
    failure of the server itself, which says nothing else.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req-{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                if message["status"] >= 400 and scope["path"] in ANSWERING:
                    self.metrics.failed(message["status"], state.get("route"))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            _log.exception("%s: %s %s failed", request_id, scope["method"], scope["path"])
            if not started:
                await internal(request_id).response()(scope, receive, send_with_id)
