"""A server on a port over a scripted engine, and OpenAI's client for it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import listening, official


@pytest.fixture
def engine() -> FakeEngine:
    """An engine that says ``Hello, world``."""
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    """A server over the engine."""
    with listening(engine) as url:
        yield url


@pytest.fixture
def ai(url: str) -> openai.OpenAI:
    """OpenAI's client."""
    return official(url)
