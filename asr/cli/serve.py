"""``asr serve``: the routed model behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.boundary import StoppedError
from asr.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantisationOption,
    TrustOption,
    load_model,
    refuse_given,
)
from asr.cli.output import counted, note, seconds, stdout
from asr.errors import ConfigError

if TYPE_CHECKING:
    from asr.serve.interface import ServingEngine

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**n for n, letter in enumerate("KMGT", start=1)}
_UNITS |= {f"{letter}IB": 1024**n for n, letter in enumerate("KMGT", start=1)}
_OF_THE_ENGINE = (
    *("max_batch", "adapter_memory", "cache_memory", "max_waiting", "allow_adapter_changes"),
    *("dtype", "quantisation", "trust_remote_code"),
)


def serve(
    context: typer.Context,
    model: ModelArgument,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Interface to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="ASR_API_KEY",
            help="What clients must send as Authorization: Bearer KEY. In the environment it is "
            "seen by fewer people than on the command line.",
            show_default=False,
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Most answers generated at once.")
    ] = 32,
    adapter_memory: Annotated[
        str,
        typer.Option(
            "--adapter-memory", metavar="SIZE", help="Adapters kept in memory, e.g. 500MB or 2GiB."
        ),
    ] = "2GiB",
    cache_memory: Annotated[
        str,
        typer.Option("--cache-memory", metavar="SIZE", help="Prompts kept for their next turn."),
    ] = "1GiB",
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, help="Requests that may wait; more get 429.")
    ] = 1000,
    max_body: Annotated[
        str, typer.Option("--max-body", metavar="SIZE", help="Longest body of a request.")
    ] = "8MiB",
    allow_adapter_changes: Annotated[
        bool,
        typer.Option(
            "--allow-adapter-changes", help="Let clients load and unload the model's adapters."
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0, metavar="SECONDS", help="Time for running answers at the end."
        ),
    ] = 30.0,
    engine_url: Annotated[
        str | None,
        typer.Option(
            "--engine-url",
            metavar="URL",
            help="Generate nothing here: route, and forward to the engine at this address, which "
            "serves the base and the adapters.",
            show_default=False,
        ),
    ] = None,
    engine_key: Annotated[
        str | None,
        typer.Option(
            "--engine-key",
            metavar="KEY",
            envvar="ASR_ENGINE_KEY",
            help="The engine's API key. Default: what each client sends.",
            show_default=False,
        ),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(
            "--base-name",
            metavar="NAME",
            help="The base's name at the engine. Default: from the engine's list of models.",
            show_default=False,
        ),
    ] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantisation: QuantisationOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Serve the routed model over HTTP, as OpenAI's API does, with a page to try it.

    Each request goes to the domain that the router chooses; a request that names a domain or base
    as its model goes there. Ctrl-C lets running answers end.

    \b
    asr serve MODEL
    ASR_API_KEY=... asr serve MODEL --host 0.0.0.0 --port 80
    asr serve MODEL --engine-url http://127.0.0.1:8001
    """
    _require_packages()
    sizes = {
        "adapter_memory": parse_size("--adapter-memory", adapter_memory),
        "cache_memory": parse_size("--cache-memory", cache_memory),
    }
    most = parse_size("--max-body", max_body)
    if api_key is not None and not api_key.strip():
        raise ConfigError("the API key is empty; give one, or leave --api-key out")
    if engine_url is not None:
        refuse_given(context, _OF_THE_ENGINE, "--engine-url", "that is the engine's to decide")
        _serve_proxy(
            model,
            engine_url,
            host=host,
            port=port,
            api_key=api_key,
            max_body=most,
            grace=grace,
            engine_key=engine_key,
            base_name=base_name,
            base=base,
            device="cpu" if device == "auto" else device,
        )
        return
    if base_name is not None:
        raise ConfigError("--base-name needs --engine-url; without an engine the base is 'base'")
    from asr.serve.api import ApiSettings, make_app
    from asr.serve.api.server import Server, bind, url_of

    started = time.monotonic()
    with bind(host, port, protected=api_key is not None) as bound:
        settings = ApiSettings(api_key, most, allow_adapter_changes)
        app = make_app(None, settings)
        with _stop_signals() as stop, Server(app, bound):
            engine = _load_engine(
                model,
                base=base,
                device=device,
                dtype=dtype,
                quantisation=quantisation,
                trust_remote_code=trust_remote_code,
                max_batch=max_batch,
                max_waiting=max_waiting,
                **sizes,
            )
            try:
                app.state.api.engine = engine
                _announce(model, engine, url_of(bound), api_key, time.monotonic() - started)
                received = stop.wait()
                _end(engine.drain, grace)
            finally:
                engine.close()
    if received == signal.SIGINT:
        raise StoppedError("stopped")


def _serve_proxy(
    model: Path,
    engine_url: str,
    *,
    host: str,
    port: int,
    api_key: str | None,
    max_body: int,
    grace: float,
    engine_key: str | None,
    base_name: str | None,
    base: str | None,
    device: str,
) -> None:
    """Route requests and forward them until a signal comes."""
    from asr.serve.api.server import Server, bind, url_of
    from asr.serve.proxy import make_proxy
    from asr.serve.upstream import check_upstream

    started = time.monotonic()
    with bind(host, port, protected=api_key is not None) as bound, _stop_signals() as stop:
        upstream = check_upstream(model, engine_url, base_name=base_name, key=engine_key)
        proxy = make_proxy(
            model,
            upstream.url,
            base=base,
            base_name=upstream.base_name,
            upstream_key=engine_key,
            api_key=api_key,
            max_body=max_body,
            device=device,
        )
        with Server(proxy, bound):
            url = url_of(bound)
            _say(
                f"{model} is routed at {url}/v1 to the engine at {upstream.url} (ready after "
                f"{seconds(time.monotonic() - started)}); Ctrl-C stops",
                f'{_listed(upstream.domains)}; model "auto" routes, "{upstream.base_name}" is '
                "none of them",
                _example(url, api_key),
            )
            received = stop.wait()
            _end(proxy.drain, grace)
    if received == signal.SIGINT:
        raise StoppedError("stopped")


def parse_size(option: str, text: str) -> int:
    """Return a size in bytes; ``KiB``, ``MiB``, ``GiB`` are powers of 1024.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{option} is '{text}'; give a size such as 500MB, 2GiB or 0")
    return int(float(match[1]) * unit)


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"asr serve needs {', '.join(missing).replace('_', '-')}, which is not installed; "
            "pip install 'analytic-subspace-routing[serve]'"
        )


def _load_engine(
    model: Path,
    *,
    max_batch: int,
    adapter_memory: int,
    cache_memory: int,
    max_waiting: int,
    base: str | None,
    device: str,
    dtype: str,
    quantisation: str | None,
    trust_remote_code: bool,
) -> ServingEngine:
    routed = load_model(
        model,
        base=base,
        device=device,
        dtype=dtype,
        quantisation=quantisation,
        trust_remote_code=trust_remote_code,
    )
    from asr.serve.engine import Engine, EngineSettings

    settings = EngineSettings(
        max_batch=max_batch,
        adapter_memory=adapter_memory,
        cache_memory=cache_memory,
        max_waiting=max_waiting,
    )
    engine = Engine(routed, settings)
    engine.start()
    return engine


class _Stop:
    """Set by the first signal to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._signal = signal.SIGINT
        self.waiting = False

    def receive(self, number: int, frame: object) -> None:
        """Take a signal: before there is anything to end gently, and a second time, stop at once.

        Raises:
            KeyboardInterrupt: stop at once.
            typer.Exit: the same, for SIGTERM before anything runs.
        """
        if not self.waiting and number == signal.SIGTERM:
            raise typer.Exit(0)
        if not self.waiting or self._event.is_set():
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        self._event.set()

    def wait(self) -> signal.Signals:
        """Wait for the first signal; return it."""
        self.waiting = True
        while not self._event.wait(3600):
            pass
        return self._signal


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Take SIGINT and SIGTERM while the context is open."""
    stop = _Stop()
    former = {
        number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _announce(
    model: Path, engine: ServingEngine, url: str, key: str | None, elapsed: float
) -> None:
    _say(
        f"{model} is served at {url}/v1 (ready after {seconds(elapsed)}); Ctrl-C stops",
        f'{_listed(engine.served.domains)}; model "auto" routes, "base" is none of them',
        f"page: {url}/",
        _example(url, key),
    )


def _end(drain: Callable[[float], bool], grace: float) -> None:
    note(f"stopping: running answers have {seconds(grace)} to end; again ends at once")
    if not drain(grace):
        note("warning: answers that had not ended were cut off")


def _listed(domains: Sequence[str]) -> str:
    return f"{counted(len(domains), 'domain')}: {', '.join(domains)}"


def _example(url: str, key: str | None) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    secret = ' -H "authorization: Bearer $ASR_API_KEY"' if key else ""
    return (
        f"try:  curl {url}/v1/chat/completions -H 'content-type: application/json'{secret} "
        f"-d '{body}'"
    )


def _say(*lines: str) -> None:
    console = stdout()
    for line in lines:
        console.print(line, soft_wrap=True)
    console.file.flush()
