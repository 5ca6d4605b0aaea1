"""The load generator sees what a server does: tokens, models by turns, refusals."""

from __future__ import annotations

import httpx
import pytest

from benchmarks.http_load import HttpClient, http_table, words_for
from tests.serve.api.fake_engine import FakeEngine, says
from tests.serve.api.serving import listening


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_request_is_counted_by_its_usage(api: str) -> None:
    engine = FakeEngine(says("one", "", "three", "four"))
    with listening(engine) as url:
        client = HttpClient(f"{url}/v1/", ["red", "sum"], words=3, tokens_out=4, api=api)
        samples = [client(number) for number in range(3)]
    assert [sample.tokens for sample in samples] == [4, 4, 4]
    assert all(0 < sample.first <= sample.total for sample in samples)
    assert [asked.model for asked in engine.requests] == ["red", "sum", "red"]
    assert all(asked.sampling.ignore_end for asked in engine.requests)
    prompts = [tuple(asked.prompt.input_ids) for asked in engine.requests]
    assert len(set(prompts)) == 3


def test_prompts_have_about_the_tokens_that_were_asked_for() -> None:
    engine = FakeEngine(context_length=4096)
    with listening(engine) as url:
        client = HttpClient(url, ["base"], words=1, tokens_out=1)
        client.words = words_for(client, 150)
        found = client.prompt_tokens()
    assert abs(found - 150) < 25


def test_every_load_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(says("one", "two"), context_length=4096)
    with listening(engine) as url:
        table = http_table(
            url, [["auto"], ["red", "sum"]], [1, 3], per_client=2, tokens_in=60, rounds=2
        )
    assert [entry["clients"] for entry in table] == [1, 3]
    assert [entry["red,sum"]["requests"] for entry in table] == [2, 6]
    asked = [request.model for request in engine.requests]
    assert (asked.count("auto"), asked.count("red"), asked.count("sum")) == (18, 8, 8)
    assert capsys.readouterr().out.count("tokens/s") == 4


def test_a_refusal_ends_the_measurement() -> None:
    with listening(FakeEngine()) as url, pytest.raises(RuntimeError, match=r"answered 404: .*nope"):
        HttpClient(url, ["nope"], words=3, tokens_out=4)(0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (['{"choices": [{"delta": {"content": "x"}}]}', '{"error": "broke"}'], "^red: broke$"),
        (['{"choices": [{"delta": {"role": "assistant", "content": ""}}]}'], "without text$"),
    ],
)
def test_a_broken_answer_is_no_sample(events: list[str], message: str) -> None:
    stream = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    server = httpx.MockTransport(lambda request: httpx.Response(200, text=stream))
    client = HttpClient("http://server", ["red"], words=3, tokens_out=4)
    client._own.client = httpx.Client(base_url="http://server", transport=server)
    with pytest.raises(RuntimeError, match=message):
        client(0)
