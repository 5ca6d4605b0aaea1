"""``asr serve --engine-url``: what is checked before the router loads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Trained, refused
from tests.serve.api.fake_engine import SERVED, FakeEngine
from tests.serve.api.serving import listening


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASR_API_KEY", raising=False)
    monkeypatch.delenv("ASR_ENGINE_KEY", raising=False)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def engine_url(engine: FakeEngine) -> Iterator[str]:
    with listening(engine, api_key="theirs") as url:
        yield url


def test_adapters_that_the_engine_lacks(
    engine: FakeEngine, engine_url: str, trained: Trained
) -> None:
    engine.served = type(SERVED)(("red",), "tiny-base", SERVED.created)
    options = ["--port", 0, "--engine-url", engine_url, "--engine-key", "theirs"]
    assert refused("serve", trained.model, *options) == (
        f"the engine at {engine_url} does not serve sum of the domains of {trained.model}; "
        f"asr export {trained.model} --to vllm prints the command that serves all"
    )


def test_the_key_of_the_engine(
    engine_url: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--port", 0, "--engine-url", engine_url]
    asked = "give it in ASR_ENGINE_KEY or with --engine-key"
    assert refused("serve", trained.model, *options) == (
        f"the engine at {engine_url} wants an API key; {asked}"
    )
    monkeypatch.setenv("ASR_API_KEY", "theirs")  # of our clients, not of the engine
    assert refused("serve", trained.model, *options).endswith(f" wants an API key; {asked}")
    monkeypatch.setenv("ASR_ENGINE_KEY", "theirs")
    assert refused("serve", trained.model, *options, "--base-name", "bose") == (
        f"the engine at {engine_url}: unknown base name 'bose' (did you mean 'base'?); there are: "
        "auto, base"
    )


def test_no_engine(trained: Trained) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    message = refused("serve", trained.model, "--port", 0, "--engine-url", url)
    assert message.startswith(f"no engine answers at {url} (")


def test_other_machines_need_a_key() -> None:
    options = ["--engine-url", "http://h", "--host", "0.0.0.0"]
    assert refused("serve", "m", *options).startswith("host 0.0.0.0 can be reached from other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--engine-url", "http://h", "--dtype", "auto", "--max-batch", "32"],
            "with --engine-url leave out --max-batch, --dtype: that is the engine's to decide",
        ),
        (
            ["--base-name", "b"],
            "--base-name needs --engine-url; without an engine the base is 'base'",
        ),
        (["--engine-url", "h"], "--engine-url is 'h'; give an address such as http://127.0.0.1"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path) -> None:
    assert refused("serve", tmp_path, "--port", 0, *options).startswith(message)
