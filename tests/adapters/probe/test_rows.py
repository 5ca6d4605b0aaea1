"""Which rows a probe looks at."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.adapters.probe.rows import DrawnRows, draw_rows
from asr.base.chat_template import ChatTemplate
from asr.data.encode import encode_example
from asr.data.formats import Example
from asr.data.turns import turn
from asr.errors import DataError
from tests.tiny_models import tiny_tokenizer

TEMPLATE = ChatTemplate.from_tokenizer(tiny_tokenizer())


def example(number: int, words: int = 2) -> Example:
    question = f"item {number} " + "meeting " * words
    return Example(
        (turn("user", question), turn("assistant", f"answer {number}")), source=f"d.jsonl:{number}"
    )


def draw(examples: list[Example], **options: Any) -> DrawnRows:
    settings: dict[str, Any] = {"samples": 4, "seeds": 2, **options}
    return draw_rows("legal", "d.jsonl", examples, tiny_tokenizer(), TEMPLATE, **settings)


@given(
    count=st.integers(2, 30),
    samples=st.integers(2, 12),
    seeds=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_every_draw_is_of_different_rows_and_full(
    count: int, samples: int, seeds: int, seed: int
) -> None:
    drawn = draw([example(i) for i in range(count)], samples=samples, seeds=seeds, seed=seed)
    assert drawn.whole == (count <= samples)
    assert len(drawn.draws) == (1 if drawn.whole else seeds)
    for places in drawn.draws:
        assert len(set(places)) == len(places) == min(samples, count)
    assert {place for places in drawn.draws for place in places} == set(range(len(drawn.rows)))
    assert len({row.source for row in drawn.rows}) == len(drawn.rows)


def test_rows_are_encoded_as_training_encodes_them() -> None:
    examples = [example(i, words=i) for i in range(6)]
    drawn = draw(examples, samples=10)
    expected = {e.source: encode_example(e, tiny_tokenizer(), TEMPLATE, None) for e in examples}
    assert {row.source: [row] for row in drawn.rows} == expected


def test_draws_follow_the_seed_and_nothing_else() -> None:
    examples = [example(i) for i in range(40)]

    def sources(drawn: DrawnRows) -> list[list[str]]:
        return [[drawn.rows[place].source for place in places] for places in drawn.draws]

    first = sources(draw(examples, seeds=3))
    assert sources(draw(examples, seeds=3)) == first
    assert sources(draw(examples, seeds=1)) == first[:1]  # more seeds change no earlier draw
    assert sources(draw(examples, seeds=3, seed=1)) != first
    assert len({tuple(places) for places in first}) == 3


def test_every_assistant_turn_that_needs_a_row_of_its_own_counts() -> None:
    """The rows of one example stand together, and a draw is cut to the number asked for."""
    text = Example((turn("text", "one two three four five six seven"),), source="d.jsonl:1")
    texts = [text, Example(text.messages, source="d.jsonl:2")]
    drawn = draw(texts, samples=100, max_length=6)
    rows = encode_example(text, tiny_tokenizer(), TEMPLATE, 6)
    assert len(drawn.rows) == 2 * len(rows) > 4
    assert len(draw(texts, samples=3, max_length=6).draws[0]) == 3


def test_examples_that_do_not_fit_are_left_out_and_counted() -> None:
    long = Example((turn("user", "a"), turn("assistant", "meeting " * 60)), source="d.jsonl:9")
    drawn = draw([long, example(1), example(2), long], samples=8, max_length=40)
    assert drawn.dropped == 2
    assert sorted(row.source for row in drawn.rows) == ["d.jsonl:1", "d.jsonl:2"]
    with pytest.raises(DataError) as caught:
        draw([long, long], max_length=40)
    assert str(caught.value).startswith(
        "legal: all labels masked: none of the 2 examples fits into max_length 40 with the answer "
        "whole"
    )


def test_too_little_to_probe_with() -> None:
    with pytest.raises(DataError) as caught:
        draw([])
    assert str(caught.value) == ("legal: there are no examples to probe with; give at least 2")
    with pytest.raises(DataError) as caught:
        draw([example(1)])
    assert str(caught.value) == (
        "legal: d.jsonl has 1 row to probe with; at least 2 are needed to say how sure the result "
        "is"
    )


def test_an_answer_that_cannot_be_encoded_is_named() -> None:
    bad = Example((turn("user", "a"), turn("assistant", "x\ud800")), source="d.jsonl:7")
    with pytest.raises(DataError) as caught:
        draw([bad, example(1), example(2)], samples=8)
    assert str(caught.value) == (
        "d.jsonl:7: the text holds \\ud800, half of a character; send valid text"
    )
