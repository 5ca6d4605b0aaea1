"""The engine's answers are those that each request would get alone, whatever runs beside it."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from asr.data.prompt import encode_prompt
from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.serve.interface import ClosingError, QueueFullError
from asr.serve.request import Failed, Finished, Piece, Routed
from tests.routed import INSTRUCTIONS, trained
from tests.serve.serving import ask, engine_of, request

PROMPTS = [
    f"{INSTRUCTIONS[domain]}\n{domain} item {i} " + "and more " * (i % 7)
    for i in range(5)
    for domain in INSTRUCTIONS
]


@pytest.fixture(scope="module")
def engine():
    started = engine_of(trained() / "model")
    yield started
    started.close()


@pytest.fixture(scope="module")
def alone():
    """Answers of the routed model, one prompt at a time."""
    model = RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    found = {}

    def get(prompt, adapter="auto", tokens=8):
        key = str((prompt, adapter, tokens))
        if key not in found:
            found[key] = model.generate([prompt], adapter=adapter, max_new_tokens=tokens)[0]
        return found[key]

    return get


def quiet(engine):
    """The status once rows have left: an answer's last event comes just before."""
    deadline = time.monotonic() + 10
    while (status := engine.status()).running and time.monotonic() < deadline:
        time.sleep(0.005)
    return status


def test_a_mixed_crowd_answers_as_each_alone(engine, alone):
    models = ["auto", "base", *engine.served.domains]
    asked = [
        (prompt, model, tokens, ask(engine, prompt, model, max_tokens=tokens))
        for prompt, model, tokens in (
            (prompt, models[i % len(models)], 1 + i % 12) for i, prompt in enumerate(PROMPTS * 3)
        )
    ]
    for prompt, model, tokens, collected in asked:
        expected = alone(prompt, model, tokens)
        collected.wait()
        assert isinstance(collected.end, Finished), collected.end
        assert collected.text == expected.text
        assert collected.route.adapter == expected.adapter
        assert collected.end.reason == expected.finish
        assert collected.end.usage.prompt_tokens == expected.prompt_tokens
        assert collected.end.usage.completion_tokens == expected.new_tokens
        assert (collected.route.kind == "named") == (model != "auto")
        if model == "auto":
            scores = expected.decision.scores
            assert collected.route.decision.scores == pytest.approx(scores, abs=1e-5)
    status = quiet(engine)
    assert status.running == status.waiting == 0
    assert status.step_rows / status.steps > 2
    assert not any("forward" in vars(module) for module in engine._base.model.modules())


def test_events_come_in_order(engine):
    events = ask(engine, PROMPTS[0], max_tokens=5, ignore_end=True).wait().events
    assert isinstance(events[0], Routed) and isinstance(events[-1], Finished)
    pieces = events[1:-1]
    assert len(pieces) == 5 and all(isinstance(piece, Piece) for piece in pieces)
    assert events[-1].reason == "length" and events[-1].usage.completion_tokens == 5
    timing = events[-1].timing
    assert 0 <= timing.queued <= timing.first_token <= timing.total


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(engine):
    settings = {"temperature": 1.5, "seed": 11, "max_tokens": 10, "ignore_end": True}
    first = ask(engine, PROMPTS[1], "sum", **settings).wait().text
    crowd = [ask(engine, prompt, temperature=0.7, max_tokens=12) for prompt in PROMPTS]
    again = ask(engine, PROMPTS[1], "sum", **settings).wait().text
    other = ask(engine, PROMPTS[1], "sum", **{**settings, "seed": 12}).wait().text
    for one in crowd:
        one.wait()
    assert again == first != other


def test_logprobs_are_those_of_the_model(engine):
    collected = ask(engine, PROMPTS[2], "base", max_tokens=3, top_logprobs=2, ignore_end=True)
    collected.wait()
    base = engine._base
    pieces = [event for event in collected.events if isinstance(event, Piece)]
    ids = encode_prompt(PROMPTS[2], base.tokenizer, base.template).input_ids
    for piece in pieces:
        (reported,) = piece.logprobs
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        expected = logits.log_softmax(-1)
        assert reported.logprob == pytest.approx(float(expected[reported.token]), abs=1e-4)
        best = expected.topk(2)
        assert [token for token, _, _ in reported.top] == best.indices.tolist()
        ids = [*ids, reported.token]


def test_stop_texts_end_an_answer(engine):
    whole = ask(engine, PROMPTS[0], max_tokens=12, ignore_end=True).wait().text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    collected = ask(engine, PROMPTS[0], max_tokens=12, ignore_end=True, stop=(stop,)).wait()
    assert collected.text == whole[: whole.index(stop)]
    assert (collected.end.reason, collected.end.stop) == ("stop", stop)


def test_unknown_models_are_named_with_what_exists(engine):
    end = ask(engine, PROMPTS[0], "sun").wait().end
    assert end == Failed(
        "unknown_model",
        "unknown model 'sun' (did you mean 'sum'?); there are: auto, base, red, rev, sum",
    )


def test_a_cancelled_request_frees_its_row_at_once(engine):
    long = ask(engine, PROMPTS[0], max_tokens=400, ignore_end=True)
    while not any(isinstance(event, Piece) for event in long.events):
        time.sleep(0.005)
    long.ticket.cancel()
    end = long.wait().end
    assert end.reason == "cancelled" and end.usage.completion_tokens < 400
    assert quiet(engine).running == 0
    long.ticket.cancel()  # nothing happens


def test_a_waiting_request_can_be_cancelled():
    engine = engine_of(trained() / "model", max_batch=1)
    try:
        first = ask(engine, PROMPTS[0], max_tokens=100, ignore_end=True)
        second = ask(engine, PROMPTS[1])
        second.ticket.cancel()
        assert second.wait().end.usage.completion_tokens == 0
        assert first.wait().end.reason == "length"
    finally:
        engine.close()


def test_a_full_queue_and_a_closing_engine_refuse():
    engine = engine_of(trained() / "model", max_batch=1, max_waiting=2)
    running = ask(engine, PROMPTS[0], max_tokens=200, ignore_end=True)
    while not running.events:
        time.sleep(0.005)
    waiting = [ask(engine, prompt) for prompt in PROMPTS[:2]]
    with pytest.raises(QueueFullError, match="2 requests are waiting already; try again in 2 s"):
        ask(engine, PROMPTS[3])
    assert engine.drain(60.0)
    assert all(isinstance(one.wait().end, Finished) for one in (running, *waiting))
    with pytest.raises(ClosingError, match="the server is shutting down"):
        ask(engine, PROMPTS[0])
    assert not engine.status().ready
    engine.close()


def test_closing_ends_what_is_unfinished():
    engine = engine_of(trained() / "model", max_batch=1)
    asked = [ask(engine, prompt, max_tokens=400, ignore_end=True) for prompt in PROMPTS[:3]]
    while not asked[0].events:
        time.sleep(0.005)
    engine.close()
    assert [one.wait().end.kind for one in asked] == ["closing"] * 3


def test_decisions_without_generating(engine, alone):
    base = engine._base
    prompts = [encode_prompt(prompt, base.tokenizer, base.template) for prompt in PROMPTS]
    decisions = engine.route(prompts).result(30)
    expected = [alone(prompt, "auto").decision.route for prompt in PROMPTS]
    assert [decision.route for decision in decisions] == expected


# -- errors inside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 6])
def test_a_forward_that_raises_ends_only_the_request_at_fault(rows, alone):
    """The fault is found by running the rows of the failed step one by one."""
    model = RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    engine = Engine(model, EngineSettings(max_batch=8)).start()
    poison = 7

    def fail(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] == 1 and (ids == poison).any():
            raise RuntimeError("secret of the inside")

    handle = model.base.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        bias = ((poison, 100.0),)  # its first token is the poison, its second step fails
        bad = ask(engine, PROMPTS[0], "base", logit_bias=bias, max_tokens=6)
        good = [ask(engine, prompt, max_tokens=6) for prompt in PROMPTS[1:rows]]
        end = bad.wait().end
        assert isinstance(end, Failed) and end.kind == "internal"
        assert "secret" not in end.message and "internal error" in end.message
        for prompt, one in zip(PROMPTS[1:rows], good, strict=True):
            assert one.wait().text == alone(prompt, "auto", 6).text
        after = ask(engine, PROMPTS[2], max_tokens=6).wait()
        assert after.text == alone(PROMPTS[2], "auto", 6).text
        assert quiet(engine).running == 0
    finally:
        handle.remove()
        engine.close()


def test_a_prefill_that_raises_ends_only_the_prompt_at_fault(alone):
    model = RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    engine = Engine(model, EngineSettings(max_batch=8)).start()
    needle = model.base.tokenizer("zzz", add_special_tokens=False)["input_ids"][0]

    def fail(module, args):
        if (args[0] == needle).any():
            raise RuntimeError("secret of the inside")

    handle = model.base.model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        collected = [ask(engine, prompt) for prompt in (*PROMPTS[:3], "zzz", *PROMPTS[3:5])]
        assert collected[3].wait().end.kind == "internal"
        del collected[3]
        for prompt, one in zip(PROMPTS[:5], collected, strict=True):
            assert one.wait().text == alone(prompt, "auto", 8).text
    finally:
        handle.remove()
        engine.close()


def test_a_reader_that_raises_takes_nobody_with_it(engine, alone):
    def broken(event):
        raise RuntimeError("gone")

    engine.submit(request(engine, PROMPTS[0], max_tokens=50), broken)
    assert ask(engine, PROMPTS[1]).wait().text == alone(PROMPTS[1]).text
    assert quiet(engine).running == 0


# -- under load ------------------------------------------------------------------------------------


def test_many_clients_with_cancellations(engine, alone):
    """Every completed answer is its solo answer; nothing is left behind."""
    numbers, models = random.Random(5), ["auto", "base", "red", "sum"]
    plan = [
        (numbers.choice(PROMPTS), numbers.choice(models), numbers.randint(1, 16))
        for _ in range(120)
    ]
    results = [None] * len(plan)

    def client(start):
        own = random.Random(start)
        for index in range(start, len(plan), 12):
            prompt, model, tokens = plan[index]
            collected = ask(engine, prompt, model, max_tokens=tokens)
            if own.random() < 0.2:
                time.sleep(own.random() * 0.02)
                collected.ticket.cancel()
            results[index] = collected.wait()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    completed = 0
    for (prompt, model, tokens), collected in zip(plan, results, strict=True):
        assert isinstance(collected.end, Finished), collected.end
        if collected.end.reason == "cancelled":
            continue
        completed += 1
        assert collected.text == alone(prompt, model, tokens).text
    assert completed > 80
    status = quiet(engine)
    assert status.running == status.waiting == 0
    assert not any("forward" in vars(module) for module in engine._base.model.modules())
