"""``asr serve``: what is checked before the model loads, and a server as a process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest

from asr.cli.serve import parse_size
from asr.errors import ConfigError
from tests.cli.conftest import Trained, refused, run_asr
from tests.serve.api.serving import error_of, eventually, official

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"}
USER = [{"role": "user", "content": "red item"}]

# A server whose engine is scripted: it answers when the file that the prompt names is there.
SCRIPTED = """
import sys, time
from pathlib import Path
import asr.cli.serve
from asr.cli.main import main
from asr.serve.request import Piece, Routed
from tests.serve.api.fake_engine import FakeEngine

def script(row):
    yield Routed(row.route)
    yield Piece("begun", 1)
    while not Path(sys.argv[1]).exists() and not row.cancelled.wait(0.01):
        pass
    yield Piece(" ended", 1)
    yield row.finished(2)

def load(model, **settings):
    print("loading", flush=True)
    while Path(sys.argv[1] + ".loading").exists():
        time.sleep(0.01)
    return FakeEngine(script)

asr.cli.serve._load_engine = load
sys.exit(main(["serve", "m", "--port", "0", *sys.argv[2:]]))
"""


class Process:
    """A server in a process of its own."""

    def __init__(self, *command: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *(str(part) for part in command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **environment},
        )
        self.said = ""

    def read_url(self) -> str:
        """Wait for the block that is printed when the server is ready."""
        while (found := re.search(r"page: (http://\S+)/\n", self.said)) is None:
            out: IO[str] | None = self.process.stdout
            assert out is not None
            line = out.readline()
            assert line, self.process.communicate()[1]
            self.said += line
        return found[1]

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; return the exit code and what stands on standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextlib.contextmanager
def started(*command: object, **environment: str) -> Iterator[Process]:
    running = Process(*command, **environment)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_a_trained_model_is_served(trained: Trained) -> None:
    command = ["-m", "asr", "serve", trained.model, "--port", "0", "--device", "cpu"]
    with started(*command) as server:
        url = server.read_url()
        answer = official(url).chat.completions.create(model="auto", messages=USER, max_tokens=4)
        assert answer.model in ("red", "sum", "base")
        assert answer.usage.completion_tokens <= 4
        assert [model.id for model in official(url).models.list()] == ["auto", "base", "red", "sum"]
        code, err = server.end(signal.SIGTERM)
    assert code == 0, err
    assert "Traceback" not in err
    assert f"{trained.model} is served at {url}/v1 (ready after " in server.said
    assert '2 domains: red, sum; model "auto" routes, "base" is none of them\n' in server.said


def test_the_block_shows_how_to_ask(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with started("-c", SCRIPTED, gate, ASR_API_KEY="secret") as server:
        url = server.read_url()
        line = server.process.stdout.readline()
        assert line.startswith(f"try:  curl {url}/v1/chat/completions ")
        assert "secret" not in line
        key = {"authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=key).status_code == 200
        if curl := shutil.which("curl"):
            command = line.removeprefix("try:  curl").strip()
            done = subprocess.run(
                f"{curl} -s {command}",
                shell=True,
                capture_output=True,
                text=True,
                env={**ENVIRONMENT, "ASR_API_KEY": "secret"},
            )
            assert '"content":"begun ended"' in done.stdout
        code, err = server.end(signal.SIGINT)
    assert code == 130
    assert err.endswith("stopped\n") and "Traceback" not in err


def test_health_answers_while_the_model_loads(tmp_path: Path) -> None:
    loading = tmp_path / "gate.loading"
    loading.touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", port, "--allow-adapter-changes", "--max-body", "1kB"]
    with started("-c", SCRIPTED, tmp_path / "gate", *options) as server:
        assert server.process.stdout.readline() == "loading\n"
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert error_of(httpx.get(f"{url}/ready"), 503)["code"] == "loading"
        loading.unlink()
        assert server.read_url() == url
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        assert httpx.post(f"{url}/v1/adapters", json={"name": "red"}).status_code == 200
        error_of(httpx.post(f"{url}/v1/adapters", json={"name": "x" * 1000}), 413)
        assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stop_while_the_model_loads(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "gate.loading").touch()
    with started("-c", SCRIPTED, tmp_path / "gate") as server:
        assert server.process.stdout.readline() == "loading\n"
        ended, err = server.end(number)
    assert ended == code
    assert "Traceback" not in err


def test_running_answers_end_and_new_ones_are_refused(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with started("-c", SCRIPTED, gate) as server:
        url = server.read_url()
        stream = official(url).chat.completions.create(model="auto", messages=USER, stream=True)
        texts = [next(stream).choices[0].delta.content, next(stream).choices[0].delta.content]
        assert texts == ["", "begun"]
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{url}/ready").status_code == 503)
        body = {"messages": USER}
        refusal = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert error_of(refusal, 503)["code"] == "shutting_down"
        gate.touch()
        assert [chunk.choices[0].delta.content for chunk in stream] == [" ended", None]
        _, err = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert "stopping: running answers have 30 s to end; again ends at once" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("again", [False, True])
def test_answers_do_not_hold_the_end_for_ever(tmp_path: Path, again: bool) -> None:
    """The time is over, or a second Ctrl-C says so."""
    grace = "1000" if again else "0.2"
    with started("-c", SCRIPTED, tmp_path / "gate", "--grace", grace) as server:
        url = server.read_url()
        stream = official(url).chat.completions.create(model="auto", messages=USER, stream=True)
        assert next(stream).choices[0].delta.content == ""
        server.process.send_signal(signal.SIGINT)
        if again:
            eventually(lambda: httpx.get(f"{url}/ready").status_code == 503)
            server.process.send_signal(signal.SIGINT)
        _, err = server.process.communicate(timeout=60)
    assert server.process.returncode == 130
    assert ("cut off" in err) is not again
    assert "Traceback" not in err


# -- before the model loads ----------------------------------------------------------------------


def test_other_machines_need_a_key() -> None:
    assert refused("serve", "nowhere", "--host", "0.0.0.0") == (
        "host 0.0.0.0 can be reached from other machines and there is no API key; set one with "
        "ASR_API_KEY or --api-key, or give --host 127.0.0.1"
    )


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("serve", "nowhere", "--port", port).startswith(
            f"port {port} of 127.0.0.1 cannot be used (Address already in use)"
        )


def test_a_model_that_is_not_there() -> None:
    message = refused("serve", "nowhere", "--port", "0")
    assert message.startswith("no folder 'nowhere'; give the folder that asr train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--adapter-memory", "lots"],
            "--adapter-memory is 'lots'; give a size such as 500MB, 2GiB or 0",
        ),
        (["--cache-memory", "1XB"], "--cache-memory is '1XB'; give a size such as 500MB, 2GiB"),
        (["--max-body", "-1"], "--max-body is '-1'; give a size such as 500MB, 2GiB or 0"),
        (["--api-key", " "], "the API key is empty; give one, or leave --api-key out"),
        (["--max-batch", "0"], "invalid value for '--max-batch': "),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    assert refused("serve", "nowhere", "--port", "0", *arguments).startswith(message)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = ("fastapi", "prometheus_client")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    assert refused("serve", "nowhere") == (
        "asr serve needs fastapi, prometheus-client, which is not installed; "
        "pip install 'analytic-subspace-routing[serve]'"
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1kB", 1000),
        ("500MB", 500_000_000),
        ("2GiB", 2 << 30),
        ("1.5 GiB", 3 << 29),
        ("2gib", 2 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--x", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2G iB", "-1", "1e9", "2 apples", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size("--x", text)


def test_help() -> None:
    outcome = run_asr("serve", "--help")
    assert outcome.code == 0
    assert "\n  asr serve MODEL\n" in outcome.out
