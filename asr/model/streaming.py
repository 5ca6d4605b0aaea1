"""Turn a generation that runs in a thread into an iterator of text pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from asr.model.answer_text import AnswerText


class _AbandonedError(Exception):
    """The reader went away; raised inside the generation to end it."""


class _PieceStreamer(BaseStreamer):
    """Puts text into a queue as its tokens come, and ends once nobody reads any more.

    The pieces together are the decoded answer, whatever the tokenizer. (transformers' own streamers
    hold words back, and at line ends decode anew, which drops a space from some tokenizers' lines.)
    """

    def __init__(self, text: AnswerText, pieces: SimpleQueue[str | None], abandoned: Event) -> None:
        self._text = text
        self._pieces = pieces
        self._abandoned = abandoned
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take one new token (1,), unless the reader is gone. The prompt comes first: skipped."""
        if self._abandoned.is_set():
            raise _AbandonedError
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._send(self._text.push(value.reshape(-1).tolist()))

    def end(self) -> None:
        """Send what was held back."""
        self._send(self._text.finish())

    def _send(self, piece: str) -> None:
        if piece:
            self._pieces.put(piece)


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
    streamer = _PieceStreamer(AnswerText(tokenizer, opening), pieces, abandoned)
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
