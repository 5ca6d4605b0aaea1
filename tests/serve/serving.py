"""An engine over a tiny routed model, and clients that collect its events."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.data.prompt import encode_prompt
from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.serve.request import Event, Failed, Finished, Piece, Routed, Sampling, ServeRequest


@dataclass
class Collected:
    """The events of one request."""

    events: list[Event] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    ticket: Any = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            assert not self.done.is_set()
            self.done.set()

    def wait(self, seconds: float = 60.0) -> Collected:
        """Until the last event."""
        assert self.done.wait(seconds), self.events
        return self

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def route(self) -> Any:
        return next(event.route for event in self.events if isinstance(event, Routed))

    @property
    def end(self) -> Any:
        return self.events[-1]


def request(engine: Engine, prompt: Any, model: str = "auto", **sampling: Any) -> ServeRequest:
    """A chat request as the HTTP side makes it."""
    encoded = encode_prompt(prompt, engine.tokenizer, engine.template, engine.context_length)
    opening = engine.template.answer_opening
    return ServeRequest(encoded, model, Sampling(**{"max_tokens": 8, **sampling}), opening)


def ask(engine: Engine, prompt: Any, model: str = "auto", **sampling: Any) -> Collected:
    """Submit a request; returns at once."""
    collected = Collected()
    collected.ticket = engine.submit(request(engine, prompt, model, **sampling), collected)
    return collected


def engine_of(folder: Path, **settings: Any) -> Engine:
    """A started engine over a routed model directory, in float32."""
    model = RoutedModel.from_pretrained(folder, device="cpu", dtype="float32")
    return Engine(model, EngineSettings(**settings)).start()
