"""Engines for the page: many domains, and answers that wait to be let go."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from asr.router import Decision
from asr.serve.request import Event, Failed, Piece, Route, Routed, ServedModel
from tests.serve.api.fake_engine import FakeEngine, Row, Script


def held(first: str, rest: str, go: threading.Event, failing: Failed | None = None) -> Script:
    """Say ``first``, and once it may go on ``rest``, or fail; a cancelled row ends."""

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        yield Piece(first, 1)
        while not go.wait(0.02):
            yield Piece("", 0)
        if failing is not None:
            yield failing
            return
        yield Piece(rest, 1)
        yield row.finished(2)

    return script


def routed(decision: Decision, *words: str) -> Script:
    """Answer by a given decision."""

    def script(row: Row) -> Iterator[Event]:
        kind = "abstained" if decision.abstained else "auto"
        named = row.request.model != "auto"
        route = (
            Route(row.request.model, "named", None)
            if named
            else Route(decision.route, kind, decision)
        )
        yield Routed(route)
        for word in words:
            yield Piece(word, 1)
        yield row.finished(len(words))

    return script


def decision(scores: dict[str, float], threshold: float = 0.5, background: float = 0.0) -> Decision:
    """The decision by these scores."""
    first, second = sorted(scores, key=scores.__getitem__, reverse=True)[:2]
    score = scores[first] - background
    abstained = score < threshold
    return Decision(
        domain=first,
        route="base" if abstained else first,
        abstained=abstained,
        score=score,
        margin=scores[first] - scores[second],
        threshold=threshold,
        scores=scores,
        probability=0.75,
    )


def serving(engine: FakeEngine, *domains: str) -> None:
    """Let an engine serve these domains."""
    engine.served = ServedModel(domains, "tiny-base", generation=engine.served.generation + 1)
