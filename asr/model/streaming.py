"""Turn a generation that runs in a thread into an iterator of text pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

from transformers import TextIteratorStreamer


class _AbandonedError(Exception):
    """The reader went away; raised inside the generation to end it."""


class _AbandonableStreamer(TextIteratorStreamer):  # type: ignore[misc]
    """Ends the generation at its next token once nobody reads any more."""

    def __init__(self, tokenizer: Any, abandoned: Event) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._abandoned = abandoned

    def put(self, value: Any) -> None:
        """Take new tokens, unless the reader is gone."""
        if self._abandoned.is_set():
            raise _AbandonedError
        super().put(value)


def stream_pieces(tokenizer: Any, generate: Callable[[Any], object]) -> Iterator[str]:
    """Run ``generate(streamer)`` in a thread and yield its text as it comes.

    Closing the iterator early ends the generation at its next token and waits for it, so that the
    model is free again. Whatever the generation raises is raised here.
    """
    abandoned = Event()
    streamer = _AbandonableStreamer(tokenizer, abandoned)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            generate(streamer)
        except _AbandonedError:
            failures.clear()
        except BaseException as error:  # handed over to the reader
            failures.append(error)
        finally:
            streamer.text_queue.put(streamer.stop_signal)

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:
        abandoned.set()
        worker.join()
    if failures:
        raise failures[0]
