"""Turn a generation that runs in a thread into an iterator of text pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

_UNFINISHED = "\ufffd"


class _AbandonedError(Exception):
    """The reader went away; raised inside the generation to end it."""


class _PieceStreamer(BaseStreamer):
    """Puts text into a queue as its tokens come, and ends once nobody reads any more.

    The pieces together are the decoded answer, whatever the tokenizer. (transformers' own streamers
    hold words back, and at line ends decode anew, which drops a space from some tokenizers' lines.)
    """

    def __init__(
        self, tokenizer: Any, pieces: SimpleQueue[str | None], abandoned: Event, opening: str
    ) -> None:
        self._tokenizer = tokenizer
        self._opening = opening
        self._pieces = pieces
        self._abandoned = abandoned
        self._tokens: list[int] = []
        self._sent = ""
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take one new token (1,), unless the reader is gone. The prompt comes first: skipped."""
        if self._abandoned.is_set():
            raise _AbandonedError
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._tokens.extend(value.reshape(-1).tolist())
        # The last character may lack bytes that the next token brings, and white space at the end
        # may be taken back by a tokenizer that cleans up.
        text = self._text().rstrip(_UNFINISHED + " ")
        if not self._opening.startswith(text):
            self._send(text.removeprefix(self._opening))

    def end(self) -> None:
        """Send what was held back."""
        self._send(self._text().removeprefix(self._opening))

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent) and text.startswith(self._sent):
            self._pieces.put(text[len(self._sent) :])
            self._sent = text


def stream_pieces(
    tokenizer: Any, generate: Callable[[Any], object], opening: str = ""
) -> Iterator[str]:
    """Run ``generate(streamer)`` in a thread and yield its text as it comes, but for ``opening``.

    The generation starts with the first piece that is asked for. Closing the iterator early ends it
    at its next token and waits for that, so that the model is free again. Whatever the generation
    raises is raised here.
    """
    abandoned = Event()
    pieces: SimpleQueue[str | None] = SimpleQueue()
    streamer = _PieceStreamer(tokenizer, pieces, abandoned, opening)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            generate(streamer)
        except _AbandonedError:
            failures.clear()
        except BaseException as error:  # handed over to the reader
            failures.append(error)
        finally:
            pieces.put(None)

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        while (piece := pieces.get()) is not None:
            yield piece
    finally:
        abandoned.set()
        worker.join()
    if failures:
        raise failures[0]
