"""``asr chat --url``: against the real HTTP API over a scripted engine, on a real port."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from asr.cli.chat import Chat
from asr.cli.chat_server import ServerModel
from asr.cli.output import stdout
from asr.errors import AsrError
from asr.serve.request import Event, Failed, Piece, Routed
from tests.cli.conftest import Outcome, Trained, refused, run_asr
from tests.serve.api.fake_engine import CREATED, SERVED, FakeEngine, Row, says
from tests.serve.api.serving import listening

ELSEWHERE = "give the address of a server that asr serve started with --url"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says("Hello", ", ", "world"))


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with listening(engine) as url:
        yield url


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASR_API_KEY", raising=False)


def chat(url: str, *lines: str, options: tuple[object, ...] = ()) -> Outcome:
    return run_asr("chat", "--url", url, *options, input="".join(f"{line}\n" for line in lines))


# -- a conversation ------------------------------------------------------------------------------


def test_each_turn_says_where_it_was_routed(engine: FakeEngine, url: str) -> None:
    outcome = chat(
        url, "red item", "who are you?", "/adapter sum", "more", "/adapter base", "x", "/quit", "y"
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (
        "domains: red, sum; /help shows the commands, /quit leaves\n"
        "[red (score 0.900, margin 0.800)]\nHello, world\n"
        "[red (score 0.900, margin 0.800)]\nHello, world\n"  # the whole conversation is routed
        "adapter: sum\n[sum (named, not routed)]\nHello, world\n"
        "adapter: base\n[base (named, not routed)]\nHello, world\n"
    )
    assert [request.model for request in engine.requests] == ["auto", "auto", "sum", "base"]
    assert "red item" in engine.rows[1].text and "Hello, world" in engine.rows[1].text


def test_a_turn_that_no_domain_claims(url: str) -> None:
    assert (
        "[base (nearest: red, score 0.100 below the threshold 0.500, margin 0.000)]\nHello, world\n"
        in chat(url, "who?").out
    )


def test_a_router_that_never_abstains(engine: FakeEngine, url: str) -> None:
    """Its threshold is null in JSON."""
    server = ServerModel(url)

    def script(row: Row) -> Iterator[Event]:
        route = row.route
        object.__setattr__(route.decision, "threshold", -math.inf)
        yield Routed(route)
        yield row.finished(0)

    engine.script = script
    turns = [{"role": "user", "content": "red"}]
    decision, name, pieces = server.stream(turns, adapter="auto", max_new_tokens=3)
    assert (name, "".join(pieces)) == ("red", "")
    assert decision is not None and decision.threshold == -math.inf
    assert (decision.probability, decision.scores) == (0.75, {"red": 0.9, "sum": 0.1})
    server.close()


def test_all_commands(engine: FakeEngine, url: str) -> None:
    outcome = chat(url, "red", "/reset", "sum", "/adapter", "/adapter nope", "/hepl", "/help")
    assert outcome.code == 0
    assert "red" not in engine.rows[1].text  # forgotten
    assert "adapter: auto; there are: auto, base, red, sum\n" in outcome.out
    assert "/reset         forget the conversation\n" in outcome.out
    assert "error: unknown adapter 'nope'; there are: auto, base, red, sum\n" in outcome.err
    assert "unknown command '/hepl' (did you mean '/help'?)" in outcome.err


def test_domains_that_come_later_can_be_named(engine: FakeEngine, url: str) -> None:
    with contextlib.closing(ServerModel(url)) as server:
        talk = Chat(server, stdout(), 3, {})
        with pytest.raises(AsrError):
            talk.choose("law")
        created = {**SERVED.created, "law": CREATED}
        engine.served = type(SERVED)(("law", "red", "sum"), "tiny-base", created)
        talk.choose("law")
    assert talk.adapter == "law"


def test_the_options_of_generation(engine: FakeEngine, url: str) -> None:
    options = ("--max-new-tokens", 2, "--temperature", 0.7, "--top-p", 0.5, "--seed", 3)
    assert chat(url, "red", options=options).out.endswith("]\nHello, \n")
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (
        *(2, 0.7, 0.5),
        3,
    )
    chat(url, "red", options=("--adapter", "sum"))
    assert engine.requests[1].model == "sum"
    assert engine.requests[1].sampling.temperature == 0
    chat(url, "red", options=("--top-p", 0.5))
    assert engine.requests[2].sampling.temperature == 1


def test_any_character_arrives(engine: FakeEngine, url: str) -> None:
    """Also those that some take for the end of a line."""
    words = ("a\u2028b\u2029c\x85d\x0be\x1cf", "\r\n", "data: x\n\ndata: [DONE]", "\U0001f600é")
    engine.script = says(*words)
    with contextlib.closing(ServerModel(url)) as server:
        turns = [{"role": "user", "content": "red"}]
        _, _, pieces = server.stream(turns, adapter="auto", max_new_tokens=9)
        assert "".join(pieces) == "".join(words)


def test_a_key(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(engine, api_key="secret") as url:
        wants = f"{url} wants an API key; set ASR_API_KEY, or give --api-key"
        assert refused("chat", "--url", url) == wants
        assert refused("chat", "--url", url, "--api-key", "wrong") == (
            f"{url} does not take this API key; set ASR_API_KEY, or give --api-key"
        )
        assert "Hello" in chat(url, "red", options=("--api-key", "secret")).out
        monkeypatch.setenv("ASR_API_KEY", "secret")
        assert "Hello" in chat(f"{url}/v1/", "red").out


# -- an answer that is stopped -------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_at_the_server(
    engine: FakeEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        while not row.cancelled.wait(0.005):
            yield Piece("word ", 1)
        yield Piece("", 0)  # never delivered

    engine.script = script
    with contextlib.closing(ServerModel(url)) as server:
        talk = Chat(server, stdout(), 100, {})
        printed = []

        def interrupt(*args: Any, **settings: Any) -> None:
            printed.append(str(args[0]) if args else "")
            if printed[-1].startswith("word"):
                raise KeyboardInterrupt

        monkeypatch.setattr(talk.console, "print", interrupt)
        with pytest.raises(KeyboardInterrupt):
            talk.answer("red")
        assert engine.left.wait(30)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"]
    assert talk.turns[1]["content"].startswith("word")


# -- what goes wrong -----------------------------------------------------------------------------


def test_a_turn_that_was_not_answered_is_no_turn(engine: FakeEngine, url: str) -> None:
    with contextlib.closing(ServerModel(url)) as server:
        talk = Chat(server, stdout(), 3, {})
        engine.full = True
        with pytest.raises(AsrError) as caught:
            talk.answer("sum")
        engine.full = False
        talk.answer("red")
    assert str(caught.value) == "the server has too many requests waiting; try again in 7 s"
    assert [turn["content"] for turn in talk.turns] == ["red", "Hello, world"]


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (
            Failed("too_long", "too many tokens"),
            "too many tokens; /reset starts a new conversation",
        ),
        (Failed("unknown_model", "unknown model 'red'"), "unknown model 'red'"),
        (Failed("adapter", "it is damaged"), "the server failed (503): it is damaged"),
    ],
)
def test_answers_that_fail_before_they_begin(
    engine: FakeEngine, url: str, failing: Failed, message: str
) -> None:
    def script(row: Row) -> Iterator[Event]:
        yield failing

    engine.script = script
    outcome = chat(url, "red", "/help")
    assert (outcome.code, outcome.err) == (0, f"error: {message}\n")
    assert "[" not in outcome.out and "/quit  " in outcome.out


def test_an_answer_that_fails_on_the_way(
    engine: FakeEngine, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = threading.Event()

    def script(row: Row) -> Iterator[Event]:
        yield Routed(row.route)
        yield Piece("half", 1)
        assert heard.wait(30)
        yield Failed("adapter", "it is damaged")

    engine.script = script
    with contextlib.closing(ServerModel(url)) as server:
        talk = Chat(server, stdout(), 3, {})
        stream = server.stream

        def hearing(*args: Any, **settings: Any) -> Any:
            decision, name, pieces = stream(*args, **settings)
            heard.set()
            return decision, name, pieces

        server.stream = hearing  # type: ignore[method-assign]
        with pytest.raises(AsrError) as caught:
            talk.answer("red")
    assert str(caught.value) == "the server failed: it is damaged"
    assert capsys.readouterr().out == "[red (score 0.900, margin 0.800)]\nhalf\n"


def test_a_conversation_that_is_too_long(url: str) -> None:
    outcome = chat(url, "red item " * 600, "red")
    assert outcome.err.count("error: ") == 1
    assert outcome.err.endswith("; /reset starts a new conversation\n")
    assert outcome.out.count("[red (score") == 1


def test_an_adapter_that_is_not_there(url: str) -> None:
    assert refused("chat", "--url", url, "--adapter", "rad") == (
        "unknown adapter 'rad' (did you mean 'red'?); there are: auto, base, red, sum"
    )


def test_a_model_that_still_loads() -> None:
    with listening(None) as url:  # type: ignore[arg-type]
        assert refused("chat", "--url", url) == (
            "the server failed (503): the model is still loading; try again later"
        )


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert refused("chat", "--url", url) == (
        f"nothing answers at {url} ([Errno 111] Connection refused); start it with asr serve "
        "MODEL, or give another --url"
    )


Answered = tuple[int, str]
LISTING = (200, json.dumps({"data": [{"id": "b"}, {"id": "red", "parent": "b"}]}))


@contextlib.contextmanager
def foreign(status: int, content: str, listing: Answered = LISTING) -> Iterator[str]:
    """A server that lists a model and gives every chat the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*listing)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer(status, content)

        def _answer(self, status: int, content: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(30)


NOT_OURS = f"the server's answer is no chat of OpenAI's API; {ELSEWHERE}"


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (404, "nothing here", f"there is no /v1/chat/completions at URL; {ELSEWHERE}"),
        (500, "<html>", "the server failed (500): it says no more"),
        (429, "{}", "the server has too many requests waiting; try again later"),
        (200, "<html>", "the server broke off before the answer had ended; ask again"),
        (200, "data: <html>\n\n", NOT_OURS),
        (200, "data: [1]\n\n", NOT_OURS),
        (200, 'data: {"choices": [1], "model": "m"}\n\n', NOT_OURS),
        (200, "data: [DONE]\n\n", NOT_OURS),
        (200, 'data: {"error": {"message": "of\\nmine"}}\n\n', "the server failed: of mine"),
    ],
)
def test_servers_that_are_none_of_ours(status: int, content: str, message: str) -> None:
    with foreign(status, content) as url:
        outcome = chat(url, "red")
    assert outcome.code == 0
    assert outcome.err == f"error: {message}\n".replace("URL", url)


def test_a_stream_that_breaks_off() -> None:
    chunk = {"model": "m", "choices": [{"delta": {"content": "half"}}]}
    with foreign(200, f"data: {json.dumps(chunk)}\n\n") as url:
        outcome = chat(url, "red", options=("--adapter", "red"))
    assert outcome.out.endswith("[m (named, not routed)]\nhalf\n")
    assert outcome.err == ("error: the server broke off before the answer had ended; ask again\n")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ((404, ""), f"there is no /v1/models at URL; {ELSEWHERE}"),
        ((200, "<html>"), f"URL/v1/models is no list of models; {ELSEWHERE}"),
        ((200, "[]"), f"URL/v1/models is no list of models; {ELSEWHERE}"),
        ((502, ""), "the server failed (502): it says no more"),
    ],
)
def test_pages_that_are_no_server(listing: Answered, message: str) -> None:
    with foreign(200, "", listing) as url:
        assert refused("chat", "--url", url) == message.replace("URL", url)


# -- before anything is asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "give what to talk with: asr chat MODEL, or asr chat --url http://127.0.0.1:8000",
        ),
        (
            ["m", "--url", "http://h"],
            "give MODEL or --url, not both: asr chat MODEL, or asr chat --url "
            "http://127.0.0.1:8000",
        ),
        (["m", "--api-key", "k"], "with MODEL leave out --api-key: only a server asks for it"),
        (
            ["--url", "h:1"],
            "--url is 'h:1'; give an address such as http://127.0.0.1:8000",
        ),
        (
            ["--url", "http://h", "--temperature", "-1"],
            "--temperature is -1; give 0 or more",
        ),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    assert refused("chat", *arguments) == message


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "cpu"],
        ["--dtype", "auto"],
        ["--base", "b"],
        ["--quantisation", "int8"],
        ["--trust-remote-code"],
    ],
)
def test_options_of_the_server(options: list[str]) -> None:
    assert refused("chat", "--url", "http://h", *options) == (
        f"with --url leave out {options[0]}: that is the server's to decide"
    )


def test_a_key_in_the_environment_is_no_mistake(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASR_API_KEY", "k")
    outcome = run_asr("chat", trained.model, input="/quit\n")
    assert (outcome.code, outcome.out.startswith("domains: red, sum; ")) == (0, True)


def test_a_server_needs_no_torch(url: str) -> None:
    code = (
        "import sys; from asr.cli.main import main\n"
        f"code = main(['chat', '--url', {url!r}])\n"
        "print(code, sorted({'torch', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="red\n", capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "Hello, world" in done.stdout
