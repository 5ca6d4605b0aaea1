"""The answers of one HTTP request: submitted to the engine, received on the event loop.

Events come from the engine's thread and wait here until they are read. Pieces of an answer that
wait are merged into one, so a client that reads slowly holds at most two events and the text of its
answer, whose length the request bounds; and the engine wakes the loop once, not once a token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial

from starlette.requests import Request

from asr.serve.api.errors import failure, refused
from asr.serve.api.settings import Api
from asr.serve.interface import ClosingError, QueueFullError, ServingEngine, Ticket
from asr.serve.request import (
    Event,
    Failed,
    Finished,
    Piece,
    Route,
    Routed,
    ServeRequest,
    TokenLogprob,
)

CLIENT_GONE = 499
"""Status of answers whose client went away, in the metrics."""


class Answers:
    """What the engine makes of a request's prompts; made by :meth:`submit`, ended by :meth:`close`.

    Attributes:
        routes: of the answers that were routed, by index.
        ends: of the answers that have ended, by index.
    """

    def __init__(self, request: Request, count: int) -> None:
        self.routes: dict[int, Route] = {}
        self.ends: dict[int, Finished] = {}
        self._count = count
        self._metrics = Api.of(request).metrics
        self._state = request.state
        self._tickets: list[Ticket] = []
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[list[Event]] = [[] for _ in range(count)]
        self._arrived = asyncio.Event()
        self._woken = False
        self._ahead: list[tuple[int, Event]] = []
        self._closed = False

    @classmethod
    def submit(
        cls, request: Request, engine: ServingEngine, wanted: Sequence[ServeRequest]
    ) -> Answers:
        """Hand all prompts of a request to the engine, or none.

        Raises:
            ApiError: 429, too many requests wait; 503, the engine takes none.
        """
        answers = cls(request, len(wanted))
        try:
            for index, one in enumerate(wanted):
                ticket = engine.submit(one, partial(answers._deliver, index))
                answers._tickets.append(ticket)
        except (QueueFullError, ClosingError) as error:
            answers.cancel()
            raise refused(error) from error
        except BaseException:
            answers.cancel()
            raise
        return answers

    async def started(self) -> Route:
        """Wait until the first answer has begun; return its route.

        What goes wrong until then can still be an HTTP error.

        Raises:
            ApiError: an answer failed.
        """
        while not any(index == 0 and not isinstance(event, Routed) for index, event in self._ahead):
            arrived = await self._next()
            for _, event in arrived:
                self._raise_if_failed(event)
            self._ahead += arrived
        return self.routes[0]

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (index, event) until all answers have ended.

        Raises:
            ApiError: an answer failed.
        """
        ended = 0
        while ended < self._count:
            arrived = self._ahead or await self._next()
            self._ahead = []
            for index, event in arrived:
                self._raise_if_failed(event)
                if isinstance(event, Finished):
                    ended += 1
                    self.ends[index] = event
                    self._metrics.finished(self.routes[index], event)
                yield index, event

    def close(self, status: int = CLIENT_GONE) -> None:
        """Cancel what has not ended, and count it under ``status``; thereafter nothing."""
        if self._closed:
            return
        self.cancel()
        for index in range(self._count):
            if index not in self.ends:
                self._metrics.failed(status, self.routes.get(index))

    def cancel(self) -> None:
        """Free the rows of what has not ended; it is not counted."""
        self._closed = True
        for index, ticket in enumerate(self._tickets):
            if index not in self.ends:
                ticket.cancel()

    async def _next(self) -> list[tuple[int, Event]]:
        await self._arrived.wait()
        with self._lock:
            self._arrived.clear()
            self._woken = False
            arrived = [
                (index, event) for index, events in enumerate(self._waiting) for event in events
            ]
            for events in self._waiting:
                events.clear()
        for index, event in arrived:
            if isinstance(event, Routed):
                self.routes[index] = event.route
                self._metrics.routed(event.route)
                if index == 0:
                    self._state.route = event.route
        return arrived

    def _raise_if_failed(self, event: Event) -> None:
        if isinstance(event, Finished) and event.reason == "cancelled":
            # nobody here asked for it: the engine is closing
            event = Failed("closing", "the server is shutting down")
        if isinstance(event, Failed):
            raise failure(event, self._state.request_id)

    def _deliver(self, index: int, event: Event) -> None:
        """Take an event, in the engine's thread."""
        with self._lock:
            waiting = self._waiting[index]
            if isinstance(event, Piece) and waiting and isinstance(waiting[-1], Piece):
                waiting[-1] = _merged(waiting[-1], event)
            else:
                waiting.append(event)
            if self._woken:
                return
            self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:
            self._closed = True  # the loop has ended, and every reader with it


class Whole:
    """An answer that is read to its end before it is sent.

    Attributes:
        text: the answer.
        logprobs: of its tokens.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    def add(self, piece: Piece) -> None:
        """Take a piece."""
        self._texts.append(piece.text)
        self.logprobs += piece.logprobs

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self._texts)


async def read_whole(answers: Answers) -> list[Whole]:
    """Read answers to their ends.

    Raises:
        ApiError: one failed.
    """
    whole: dict[int, Whole] = {}
    async for index, event in answers.events():
        if isinstance(event, Routed):
            whole[index] = Whole()
        elif isinstance(event, Piece):
            whole[index].add(event)
    return [whole[index] for index in sorted(whole)]


def _merged(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text, first.tokens + second.tokens, first.logprobs + second.logprobs
    )
