"""How answers are sent: whole, or as server-sent events; and never to a client that is gone.

Both ways listen for the client's disconnect while they wait for the engine, and free the rows of
the request as soon as it comes. A stream starts with the first token: until then, whatever goes
wrong is an HTTP error, and the headers tell the route.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from asr.serve.api.answers import CLIENT_GONE, Answers, Whole, read_whole
from asr.serve.api.errors import ApiError, internal
from asr.serve.api.outgoing import route_headers
from asr.serve.api.settings import Api

_log = logging.getLogger("asr.serve")
_T = TypeVar("_T")

Chunks = AsyncIterator[str]


class ClientGoneError(Exception):
    """The client closed the connection."""


async def respond(
    request: Request,
    answers: Answers,
    streaming: bool,
    whole: Callable[[list[Whole]], Mapping[str, Any]],
    chunks: Callable[[], Chunks],
    failed: Callable[[ApiError], str] | None = None,
) -> Response:
    """Send answers.

    Args:
        request: who asked; its body has been read.
        answers: what was submitted for it.
        streaming: as server-sent events, or whole.
        whole: makes the JSON of whole answers.
        chunks: makes the events of a stream.
        failed: makes the last event of a stream that fails; by default it holds the error alone.

    Raises:
        ApiError: an answer failed before anything was sent.
    """
    try:
        if streaming:
            route = await _unless_gone(request.receive, answers.started())
            return EventStream(request, answers, chunks(), failed, route_headers(route))
        texts = await _unless_gone(request.receive, read_whole(answers))
        return JSONResponse(whole(texts), headers=route_headers(answers.routes[0]))
    except ClientGoneError:
        answers.close()
        return _Nothing()
    except ApiError:
        # counted with the response, under its status
        answers.cancel()
        raise
    except BaseException:
        answers.close(500)
        raise


def event(data: Any, name: str | None = None) -> str:
    """Return a server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


class EventStream(Response):
    """A response of server-sent events, which ends with its answers, its client, or an error.

    A client that leaves a piece unread for longer than ``write_timeout`` counts as gone. Until
    then, what it has not read waits in the socket's buffer and in :class:`Answers`, both bounded.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        answers: Answers,
        chunks: Chunks,
        failed: Callable[[ApiError], str] | None,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answers = answers
        self._chunks = chunks
        self._failed = failed or (lambda error: event(error.body()))
        self._request_id: str = request.state.request_id
        self._timeout = Api.of(request).settings.write_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        status = CLIENT_GONE
        try:
            status = await _unless_gone(receive, self._send_all(send))
        except (ClientGoneError, TimeoutError, OSError):
            _log.debug("%s: the client went away", self._request_id)
        finally:
            self._answers.close(status)

    async def _send_all(self, send: Send) -> int:
        """Send everything; return the status to count what has not ended under."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        status = CLIENT_GONE
        last = ""
        try:
            async for chunk in self._chunks:
                await self._write(send, chunk)
        except ApiError as error:
            status, last = error.status_code, self._failed(error)
        except (OSError, TimeoutError):
            raise
        except Exception:
            _log.exception("%s: a stream failed", self._request_id)
            status, last = 500, self._failed(internal(self._request_id))
        await self._write(send, last, more=False)
        return status

    async def _write(self, send: Send, text: str, more: bool = True) -> None:
        async with asyncio.timeout(self._timeout):
            body = text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": more})


class _Nothing(Response):
    """To a client that is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


async def _unless_gone(receive: Receive, work: Awaitable[_T]) -> _T:
    """Await ``work``, unless the client disconnects first.

    Raises:
        ClientGoneError: it did; the work is cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
