from __future__ import annotations

from dataclasses import replace
from typing import Any

import openai
import pytest

from tests.serve.api.fake_engine import CREATED, FakeEngine
from tests.serve.api.serving import client, error_of


def test_models_are_auto_base_and_every_domain(ai: openai.OpenAI) -> None:
    models = list(ai.models.list())
    assert [model.id for model in models] == ["auto", "base", "red", "sum"]
    assert {model.object for model in models} == {"model"}
    assert {model.model_extra["root"] for model in models} == {"tiny-base"}
    parents = [model.model_extra["parent"] for model in models]
    assert parents == [None, None, "tiny-base", "tiny-base"]
    assert models[2].created == CREATED
    assert ai.models.retrieve("sum") == models[3]
    with pytest.raises(openai.NotFoundError) as caught:
        ai.models.retrieve("smu")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("/home/me/bases/tiny", "tiny"), ("../tiny", "tiny"), ("org/tiny", "org/tiny")],
)
def test_where_the_base_lies_is_not_told(engine: FakeEngine, name: str, shown: str) -> None:
    engine.served = replace(engine.served, base_name=name)
    caller = client(engine)
    assert caller.get("/v1/models/red").json()["parent"] == shown
    assert caller.get("/v1/models/base").json()["root"] == shown
    assert caller.get("/v1/status").json()["base"] == shown


@pytest.mark.parametrize("model", ["Red", "re d", "../red", "/etc/passwd", "", "none", "x" * 200])
def test_a_model_that_does_not_exist_is_named_with_those_that_do(
    engine: FakeEngine, model: str
) -> None:
    body = {"messages": [{"role": "user", "content": "red"}], "model": model}
    error = error_of(client(engine).post("/v1/chat/completions", json=body), 404)
    assert error["message"].startswith(f"unknown model '{model}'")
    assert error["message"].endswith("there are: auto, base, red, sum")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert engine.requests == []


def test_a_near_name_is_suggested(engine: FakeEngine) -> None:
    error = error_of(client(engine).get("/v1/models/rde"), 404)
    assert error["message"] == (
        "unknown model 'rde' (did you mean 'red'?); there are: auto, base, red, sum"
    )


TURNS = [{"role": "user", "content": [{"type": "text", "text": "sum"}]}]


@pytest.mark.parametrize(
    ("given", "adapters"),
    [
        ("red?", ["red"]),
        (["red", "unknown", "sum"], ["red", "base", "sum"]),
        (TURNS, ["sum"]),
        ([TURNS, TURNS], ["sum", "sum"]),
    ],
)
def test_decisions_without_answers(engine: FakeEngine, given: Any, adapters: list[str]) -> None:
    answer = client(engine).post("/v1/route", json={"input": given}).json()
    assert [item["adapter"] for item in answer["data"]] == adapters
    assert [item["index"] for item in answer["data"]] == list(range(len(adapters)))
    assert engine.requests == []


def test_a_decision_says_why(engine: FakeEngine) -> None:
    answer = client(engine).post("/v1/route", json={"input": "nothing"}).json()
    assert answer == {
        "object": "list",
        "data": [
            {
                "index": 0,
                "object": "route",
                "adapter": "base",
                "domain": "red",
                "score": 0.1,
                "margin": 0.0,
                "threshold": 0.5,
                "probability": 0.75,
                "abstained": True,
                "scores": {"red": 0.1, "sum": 0.1},
            }
        ],
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "input: must have at least 1 character"),
        ([], "input: must have at least 1 item"),
        ([[]], "input[0]: must have at least 1 item"),
        (5, "input: must be text or an array"),
        ([5], "input[0]: must be text or an object or an array"),
        (["a"] * 257, "input: must have at most 256 items"),
        (
            ["a", "  "],
            "the prompt has no text to route on (only white space); write one",
        ),
        ("x " * 600, "the prompt has 1213 tokens, the context holds 512"),
    ],
)
def test_bad_inputs(engine: FakeEngine, given: Any, message: str) -> None:
    error = error_of(client(engine).post("/v1/route", json={"input": given}), 400)
    assert error["message"].startswith(message)


def test_a_bad_prompt_among_several_is_named(engine: FakeEngine) -> None:
    error = error_of(client(engine).post("/v1/route", json={"input": ["red", " "]}), 400)
    assert error["param"] == "input[1]"


def test_no_decisions_in_a_shutdown(engine: FakeEngine) -> None:
    engine.ready = False
    error = error_of(client(engine).post("/v1/route", json={"input": "red"}), 503)
    assert error["code"] == "shutting_down"
