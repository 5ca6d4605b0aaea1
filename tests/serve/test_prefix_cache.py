"""The next turn of a conversation takes states along, and its answer is that of a fresh prefill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asr.model.routed_model import RoutedModel
from asr.serve.prefix_cache import WORTH, Entry, PrefixCache
from asr.serve.request import Finished
from tests.routed import INSTRUCTIONS, trained
from tests.serve.serving import ask, engine_of


@pytest.fixture(scope="module")
def model():
    return RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")


@pytest.fixture
def engine():
    started = engine_of(trained() / "model")
    yield started
    started.close()


FIRST = {"role": "user", "content": f"{INSTRUCTIONS['red']}\nred item 1 " + "and so on " * 12}
SECOND = {"role": "user", "content": "red item 2"}


def turns(answer: str) -> list[dict[str, str]]:
    return [FIRST, {"role": "assistant", "content": answer}, SECOND]


@pytest.mark.parametrize("adapter", ["auto", "red", "base"])
def test_the_second_turn_pays_for_its_new_tokens_only(engine, model, adapter):
    first = ask(engine, [FIRST], adapter).wait()
    assert first.end.usage.cached_tokens == 0
    second = ask(engine, turns(first.text), adapter).wait()
    usage = second.end.usage
    assert usage.cached_tokens >= first.end.usage.prompt_tokens
    assert usage.cached_tokens < usage.prompt_tokens
    assert (
        second.text
        == model.generate([turns(first.text)], adapter=adapter, max_new_tokens=8)[0].text
    )
    assert engine.status().cache_hits == 1


def test_states_of_one_adapter_never_serve_another(engine, model):
    """llama.cpp once answered with the states of the adapter before; lower layers may be shared."""
    first = ask(engine, [FIRST], "red").wait()
    for other in ("rev", "base", "red"):
        fresh = ask(engine, turns(first.text), other).wait()
        expected = model.generate([turns(first.text)], adapter=other, max_new_tokens=8)[0]
        assert fresh.text == expected.text
        assert (fresh.end.usage.cached_tokens > 0) == (other == "red")
    assert engine.status().cache_hits == 3


def test_adapters_below_the_router_layer_leave_nothing(engine, model):
    """The lower layers of such a row are not the base's."""
    ask(engine, [FIRST], "sum").wait()
    second = ask(engine, turns("x"), "sum").wait()
    assert second.end.usage.cached_tokens == 0 and engine.status().cache_hits == 0
    assert second.text == model.generate([turns("x")], adapter="sum", max_new_tokens=8)[0].text


def test_the_decision_is_that_of_a_fresh_prefix(engine, model):
    first = ask(engine, [FIRST]).wait()
    second = ask(engine, turns(first.text)).wait()
    assert engine.status().cache_hits == 1
    expected = model.route([turns(first.text)])[0]
    found = second.route.decision
    assert found.route == expected.route
    assert found.scores == pytest.approx(expected.scores, abs=1e-6)


def test_a_conversation_that_was_cancelled_goes_on_from_where_it_was(engine, model):
    first = ask(engine, [FIRST], "red", max_tokens=300, ignore_end=True)
    while len(first.events) < 4:
        pass
    first.ticket.cancel()
    first.wait()
    second = ask(engine, turns(first.text), "red").wait()
    expected = model.generate([turns(first.text)], adapter="red", max_new_tokens=8)[0]
    assert isinstance(second.end, Finished) and second.text == expected.text
    assert second.end.usage.cached_tokens >= first.end.usage.prompt_tokens - 1


def test_without_memory_nothing_is_kept(model):
    engine = engine_of(trained() / "model", cache_memory=0)
    try:
        first = ask(engine, [FIRST], "red").wait()
        second = ask(engine, turns(first.text), "red").wait()
        assert second.end.usage.cached_tokens == 0 and engine.status().cache_bytes == 0
    finally:
        engine.close()


# -- the cache alone -------------------------------------------------------------------------------


def entry(tokens: list[int], key: str = "a") -> Entry:
    state = torch.zeros(2, len(tokens), 4), torch.zeros(2, len(tokens), 4)
    return Entry(np.array(tokens), torch.zeros(len(tokens), 8), [state, None], key)


def test_the_longest_common_beginning_is_found():
    cache = PrefixCache(1 << 30)
    cache.put(entry(list(range(100))))
    cache.put(entry([*range(90), *range(500, 600)]))
    cache.put(entry(list(range(200, 300)), key="b"))
    prompt = [*range(90), *range(500, 560), 1, 2]
    assert cache.shallow(prompt).length == 150
    assert cache.deep(prompt, "a").length == 150
    assert cache.deep(prompt, "b") is None
    assert cache.shallow(list(range(100))).length == 99  # the last token is always run
    assert cache.shallow([*range(WORTH - 1), *range(900, 999)]) is None
    assert cache.shallow(list(range(WORTH))) is None


def test_an_entry_replaces_what_it_continues():
    cache = PrefixCache(1 << 30)
    cache.put(entry(list(range(80))))
    cache.put(entry(list(range(80)), key="b"))
    cache.put(entry(list(range(120))))
    assert len(cache) == 2
    cache.keep_only(["b"])
    assert len(cache) == 1 and cache.nbytes == entry(list(range(80))).nbytes
    cache.clear()
    assert len(cache) == 0 and cache.nbytes == 0


def test_beyond_the_budget_the_least_recently_used_leaves():
    size = entry(list(range(100))).nbytes
    cache = PrefixCache(2 * size)
    sequences = [list(range(start, start + 100)) for start in (0, 1000, 2000)]
    cache.put(entry(sequences[0]))
    cache.put(entry(sequences[1]))
    assert cache.shallow([*sequences[0], 5]).length == 100
    cache.put(entry(sequences[2]))
    assert cache.nbytes == 2 * size
    assert cache.shallow([*sequences[1], 5]) is None
    assert cache.shallow([*sequences[0], 5]).length == 100
    cache.put(entry(list(range(1000)) * 3))  # larger than all of it: not kept
    assert cache.nbytes == 2 * size
