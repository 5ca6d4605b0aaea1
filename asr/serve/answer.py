"""One answer on its way: what was asked, where it goes, what has come so far, and how it ends.

The worker alone changes it, but for :attr:`Answer.cancelled`, which any thread may set.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from asr.model.answer_text import AnswerText
from asr.serve.request import (
    Event,
    Failed,
    FailureKind,
    Finished,
    FinishReason,
    Piece,
    Route,
    Routed,
    ServeRequest,
    Timing,
    TokenLogprob,
    Usage,
)
from asr.serve.sampling import Chosen, Sampler
from asr.serve.served import Target

log = logging.getLogger("asr.serve")


class Answer:
    """A submitted request and its answer.

    Args:
        request: what is wanted.
        deliver: receives the events.
        tokenizer: of the base.
        vocabulary_size: number of logits.
        end_ids: tokens that end an answer.
        context_length: of the base, in tokens.

    Attributes:
        cancelled: nobody waits for it any more.
        target: the adapter that it runs with, once known.
        hidden: the hidden states that entered the router layer, per part of its tokens.
        cached_tokens: prompt tokens whose deep states were taken from the prefix cache.

    Raises:
        ConfigError: the sampling settings do not fit the vocabulary.
    """

    def __init__(
        self,
        request: ServeRequest,
        deliver: Callable[[Event], None],
        tokenizer: Any,
        vocabulary_size: int,
        end_ids: tuple[int, ...],
        context_length: int,
    ) -> None:
        self.request = request
        self.cancelled = False
        self.target: Target | None = None
        self.hidden: list[Tensor] = []
        self.cached_tokens = 0
        self.last_token = 0
        self._deliver = deliver
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._over = False
        self._failed = False
        prompt = request.prompt.input_ids
        self.sampler = Sampler(request.sampling, prompt, vocabulary_size, end_ids)
        self._text = AnswerText(tokenizer, request.opening, request.sampling.stop)
        self._most = min(request.sampling.max_tokens, context_length - len(prompt))
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._first: float | None = None

    @property
    def over(self) -> bool:
        """Whether its last event was delivered."""
        return self._over

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._failed

    @property
    def token_ids(self) -> list[int]:
        """Of the prompt."""
        return self.request.prompt.input_ids

    def start(self) -> None:
        """Its first forward pass begins."""
        if self._started is None:
            self._started = time.monotonic()

    def route(self, route: Route, target: Target) -> None:
        """It goes there; announced with its first token."""
        self.target = target
        self._route = route

    def announce(self) -> None:
        """Deliver the decision."""
        self._send(Routed(self._route))

    def take(self, chosen: Chosen) -> bool:
        """Take its next token; return whether it has ended."""
        if self._first is None:
            self._first = time.monotonic()
        self.last_token = chosen.token
        tokens = len(self.sampler.generated)
        ended = not self.request.sampling.ignore_end and chosen.token in self._end_ids
        shown = self._text.push([chosen.token])
        reported = chosen.reported(self._decode)
        logprobs: tuple[TokenLogprob, ...] = () if reported is None else (reported,)
        stopped = self._text.stopped
        over = ended or stopped is not None or tokens >= self._most
        if over and stopped is None:
            shown += self._text.finish()
            stopped = self._text.stopped
        self._send(Piece(shown, 1, logprobs))
        if over:
            self._finish("stop" if ended or stopped is not None else "length", stopped)
        return over

    def cancel(self) -> None:
        """End it where it is: nobody reads on."""
        if not self._over:
            self._finish("cancelled", None)

    def fail(self, kind: FailureKind, message: str) -> None:
        """End it with an error that may be shown."""
        if not self._over:
            self._over = self._failed = True
            self._send(Failed(kind, message))

    def fail_on(self, error: BaseException) -> None:
        """End it with an error of the inside: its text goes to the log, a number to the client."""
        number = secrets.token_hex(4)
        log.error("internal error %s", number, exc_info=error)
        self.fail("internal", f"internal error {number}; the server's log says more")

    # -- inside ----------------------------------------------------------------------------------

    def _finish(self, reason: FinishReason, stop: str | None) -> None:
        self._over = True
        now = time.monotonic()
        usage = Usage(len(self.token_ids), len(self.sampler.generated), self.cached_tokens)
        timing = Timing(
            queued=(self._started or now) - self._submitted,
            first_token=(self._first or now) - self._submitted,
            total=now - self._submitted,
        )
        self._send(Finished(reason, usage, timing, stop))

    def _decode(self, token: int) -> str:
        text: str = self._tokenizer.decode([token])
        return text

    def _send(self, event: Event) -> None:
        try:
            self._deliver(event)
        except Exception:
            # A reader that is gone must not take the other rows with it.
            log.exception("an event could not be delivered")
            self.cancelled = True
