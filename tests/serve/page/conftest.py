"""A browser for all tests, and a server over a scripted engine for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import listening
from tests.serve.page.browser import Page, chromium


@pytest.fixture(scope="session")
def driver() -> Iterator[object]:
    with chromium() as started:
        yield started


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def page(driver: object, engine: FakeEngine) -> Iterator[Page]:
    """The page of a server without a key, ready; nothing in it may have failed by the end."""
    with listening(engine) as url:
        opened = Page(driver)
        opened.open(url)
        opened.ready()
        yield opened
        assert opened.complaints() == []
