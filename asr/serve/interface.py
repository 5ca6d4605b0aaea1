"""What the HTTP side asks of an engine; :class:`asr.serve.engine.Engine` is the one there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from asr.base.chat_template import ChatTemplate
from asr.data.prompt import EncodedPrompt
from asr.router import Decision
from asr.serve.request import EngineStatus, Event, ServedModel, ServeRequest


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """Free its row; thread-safe, and nothing happens if it has ended."""
        ...


class ServingEngine(Protocol):
    """A worker that owns a model. All methods are thread-safe and return at once."""

    tokenizer: Any
    template: ChatTemplate
    context_length: int

    @property
    def served(self) -> ServedModel:
        """The domains of now."""
        ...

    def status(self) -> EngineStatus:
        """The engine of now."""
        ...

    def submit(self, request: ServeRequest, deliver: Callable[[Event], None]) -> Ticket:
        """Queue a request; ``deliver`` is called from the worker's thread, once per event.

        Raises:
            QueueFullError: too many requests wait.
            ClosingError: the engine is shutting down, or has not started.
        """
        ...

    def route(self, prompts: Sequence[EncodedPrompt]) -> Future[list[Decision]]:
        """Decide without generating; raises as :meth:`submit`."""
        ...

    def load_adapter(self, domain: str) -> Future[None]:
        """Make a served domain's adapter resident; the future raises AdapterError."""
        ...

    def unload_adapter(self, domain: str) -> Future[None]:
        """Drop a resident adapter once no row uses it; it is read again when asked for."""
        ...

    def drain(self, seconds: float) -> bool:
        """Accept nothing new, and wait until running answers have ended; whether they have."""
        ...

    def close(self) -> None:
        """Stop the worker; unfinished requests get :class:`Failed` with kind ``closing``."""
        ...


class QueueFullError(Exception):
    """Too many requests wait; ``seconds`` is when to come again."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {seconds} s")
        self.waiting = waiting
        self.seconds = seconds


class ClosingError(Exception):
    """The engine takes no requests: it is shutting down."""
