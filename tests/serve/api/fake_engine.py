"""A serving engine without a model: it says what a test tells it to, from a thread of its own."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from asr.base.chat_template import ChatTemplate
from asr.data.prompt import EncodedPrompt
from asr.errors import AdapterError
from asr.router import Decision
from asr.serve.interface import ClosingError, QueueFullError
from asr.serve.request import (
    EngineStatus,
    Event,
    Failed,
    Finished,
    Piece,
    Route,
    Routed,
    ServedModel,
    ServeRequest,
    Timing,
    TokenLogprob,
    Usage,
)
from tests.tiny_models import tiny_tokenizer

DOMAINS = ("red", "sum")
CREATED = 1_700_000_000
SERVED = ServedModel(DOMAINS, "tiny-base", {"red": CREATED, "sum": CREATED + 1})

Script = Callable[["Row"], Iterator[Event]]


def decide(text: str, threshold: float = 0.5) -> Decision:
    """A domain that is named in the text is sure of it; without one the router abstains."""
    scores = {name: 0.9 if name in text else 0.1 for name in DOMAINS}
    best = max(DOMAINS, key=lambda name: scores[name])
    other = min(scores.values())
    abstained = scores[best] < threshold
    return Decision(
        domain=best,
        route="base" if abstained else best,
        abstained=abstained,
        score=scores[best],
        margin=scores[best] - other,
        threshold=threshold,
        scores=scores,
        probability=0.75,
    )


class Row:
    """A submitted request, and the ticket for it."""

    def __init__(self, request: ServeRequest, text: str, served: ServedModel) -> None:
        self.request = request
        self.text = text
        self.served = served
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    @property
    def route(self) -> Route:
        if self.request.model != "auto":
            return Route(self.request.model, "named", None)
        decision = decide(self.text)
        return Route(decision.route, "abstained" if decision.abstained else "auto", decision)

    def finished(self, tokens: int, reason: Any = "stop") -> Finished:
        usage = Usage(len(self.request.prompt.input_ids), tokens, 3)
        return Finished(reason, usage, Timing(0.01, 0.02, 0.02 + 0.01 * (tokens - 1)))


def says(*words: str, reason: str = "stop", failing: Failed | None = None) -> Script:
    """A script: routed, a piece a word, and the end."""

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        most = row.request.sampling.max_tokens
        for number, word in enumerate(words[:most]):
            logprobs: tuple[TokenLogprob, ...] = ()
            if row.request.sampling.top_logprobs is not None:
                top = ((7, word, -0.5), (8, "\ufffd", -math.inf))
                logprobs = (TokenLogprob(7, word, -0.5, top[: row.request.sampling.top_logprobs]),)
            yield Piece(word, 1, logprobs)
            if failing is not None and number == 0:
                yield failing
                return
        cut = len(words) > most
        yield row.finished(min(len(words), most), "length" if cut else reason)

    return script


class FakeEngine:
    """The protocol of :class:`asr.serve.interface.ServingEngine`, scripted.

    Args:
        script: what every request gets; a test may change :attr:`script` between requests.
    """

    def __init__(self, script: Script | None = None, context_length: int = 512) -> None:
        self.tokenizer: Any = tiny_tokenizer()
        self.template = ChatTemplate.from_tokenizer(self.tokenizer)
        self.context_length = context_length
        self.served = SERVED
        self.script = script or says("Hello", ", ", "world")
        self.requests: list[ServeRequest] = []
        self.rows: list[Row] = []
        self.resident: list[str] = []
        self.full = False
        self.ready = True
        self.closed = False
        self.damaged: set[str] = set()
        self.left = threading.Event()
        """Set when a row has been cancelled and is free."""
        self._work: queue.SimpleQueue[tuple[Row, Callable[[Event], None]] | None]
        self._work = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def status(self) -> EngineStatus:
        running = sum(thread.is_alive() for thread in self._threads)
        return EngineStatus(
            running=running,
            waiting=0,
            resident=tuple(self.resident),
            resident_bytes=10 * len(self.resident),
            budget_bytes=1000,
            evictions=1,
            loads=2,
            cache_bytes=30,
            cache_hits=4,
            steps=10,
            step_rows=25,
            ready=self.ready,
        )

    def submit(self, request: ServeRequest, deliver: Callable[[Event], None]) -> Row:
        if not self.ready:
            raise ClosingError
        if self.full:
            raise QueueFullError(1000, 7)
        row = Row(request, self.tokenizer.decode(request.prompt.input_ids), self.served)
        self.requests.append(request)
        self.rows.append(row)
        thread = threading.Thread(target=self._run, args=(row, deliver), daemon=True)
        self._threads.append(thread)
        thread.start()
        return row

    def route(self, prompts: Sequence[EncodedPrompt]) -> Future[list[Decision]]:
        if not self.ready:
            raise ClosingError
        future: Future[list[Decision]] = Future()
        texts = [self.tokenizer.decode(prompt.input_ids) for prompt in prompts]
        decisions = [decide(text) for text in texts]
        threading.Thread(target=future.set_result, args=(decisions,), daemon=True).start()
        return future

    def load_adapter(self, domain: str) -> Future[None]:
        future: Future[None] = Future()
        if domain in self.damaged:
            future.set_exception(AdapterError(f"/secret/path/{domain} was changed since training"))
        else:
            self.resident.append(domain)
            future.set_result(None)
        return future

    def unload_adapter(self, domain: str) -> Future[None]:
        if domain in self.resident:
            self.resident.remove(domain)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def drain(self, seconds: float) -> bool:
        self.ready = False
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        self.ready, self.closed = False, True
        for row in self.rows:
            row.cancel()

    def _run(self, row: Row, deliver: Callable[[Event], None]) -> None:
        for event in self.script(row):
            if row.cancelled.is_set():
                if self.closed:
                    deliver(Failed("closing", "the server is shutting down"))
                self.left.set()
                return
            deliver(event)
