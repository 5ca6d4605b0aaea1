"""A prompt that the router claims for no domain is answered by the base, and that is visible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import asr
from tests.routed import INSTRUCTIONS, trained

PROMPTS = [
    f"{INSTRUCTIONS['red']}\nred item 7 8",
    f"{INSTRUCTIONS['sum']}\nsum item 3 93",
    f"{INSTRUCTIONS['rev']}\nrev item 12 1",
]


@pytest.fixture(scope="module")
def model() -> Iterator[asr.RoutedModel]:
    found = asr.RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    yield found
    found.close()


def with_threshold(model: asr.RoutedModel, threshold: float) -> None:
    report = replace(model.router.report, threshold=threshold)
    model.router = replace(model.router, report=report)


def test_all_that_falls_below_the_threshold_goes_to_the_base(model: asr.RoutedModel) -> None:
    with_threshold(model, 1e9)
    expected = model.generate(PROMPTS, adapter="base", max_new_tokens=6)
    answers = model.generate(PROMPTS, max_new_tokens=6)
    assert [answer.adapter for answer in answers] == ["base"] * 3
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    for answer, best in zip(answers, ("red", "sum", "rev"), strict=True):
        assert answer.decision is not None
        assert (answer.decision.route, answer.decision.domain) == ("base", best)
        assert answer.decision.abstained
    decision, name, pieces = model.stream(PROMPTS[0], max_new_tokens=6)
    assert decision is not None and decision.abstained
    assert (name, "".join(pieces)) == ("base", expected[0].text)


def test_one_batch_holds_prompts_of_domains_and_of_none(model: asr.RoutedModel) -> None:
    scores = sorted(decision.score for decision in model.route(PROMPTS))
    with_threshold(model, (scores[0] + scores[1]) / 2)
    answers = model.generate(PROMPTS, max_new_tokens=6)
    assert sorted(answer.adapter == "base" for answer in answers) == [False, False, True]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        [alone] = model.generate([prompt], adapter=answer.adapter, max_new_tokens=6)
        assert alone.text == answer.text
