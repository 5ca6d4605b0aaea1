"""Cutting the middle of a content: by tokens, between characters."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from asr.data.formats import Message
from asr.data.shorten import KEPT_TOKENS, DoesNotFitError, cut_middle, shorten_messages
from asr.data.tokens import tokenise

PER_WORD = [(0, 3), (4, 7), (8, 13), (14, 18), (19, 23)]  # leading spaces left out
WORDS = "one two three four five"


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        (0, "one two three four five"),
        (1, "one two four five"),
        (2, "one two five"),
        (3, "one five"),
        (4, "one"),
        (5, ""),
    ],
)
def test_cut_middle(removed: int, left: str) -> None:
    assert cut_middle(WORDS, PER_WORD, removed) == left


def test_a_character_of_several_tokens_is_not_split() -> None:
    spread = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]  # the middle one takes three tokens
    cuts = [cut_middle("a😀b", spread, removed) for removed in range(6)]
    assert set(cuts) <= {"a😀b", "ab", "a😀", "a", "b", ""}
    assert [len(cut) for cut in cuts] == sorted((len(cut) for cut in cuts), reverse=True)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.data())
def test_head_and_tail_of_the_content_are_left(
    tokenizer: PreTrainedTokenizerFast, content: str, data: st.DataObject
) -> None:
    offsets = tokenise(tokenizer, content).offsets
    if not offsets:
        return
    removed = data.draw(st.integers(0, len(offsets)))
    left = cut_middle(content, offsets, removed)
    heads = range(len(left) + 1)
    assert any(content.startswith(left[:i]) and content.endswith(left[i:]) for i in heads)
    assert removed == 0 or len(left) <= len(content)


def turns(*lengths: int) -> list[Message]:
    return [{"role": "user", "content": "x " * length} for length in lengths]


def test_longest_first_then_the_next(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "x " * 500}, *turns(30, 60, 20)]

    def measure(candidate: object) -> int:
        assert isinstance(candidate, list)
        return sum(turn["content"].count("x") for turn in candidate)

    def counts(limit: int) -> list[int]:
        short = shorten_messages(messages, tokenizer, limit, measure)
        return [turn["content"].count("x") for turn in short]

    assert counts(610) == [500, 30, 60, 20]
    assert counts(600) == [500, 30, 50, 20]
    low = counts(545)
    assert low[0] == 500 and low[2] <= KEPT_TOKENS and low[1] < 30 and low[3] == 20
    assert messages[1:] == turns(30, 60, 20)  # the given turns are not changed
    with pytest.raises(DoesNotFitError) as error:
        counts(505)
    assert str(error.value) == (
        f"610 tokens, and {error.value.needed} even with its user messages cut to 8 tokens; "
        "505 are allowed"
    )
    assert 505 < error.value.needed <= 500 + 3 * KEPT_TOKENS


def test_the_longest_is_the_one_of_most_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    known, unknown = "question " * 12, "zqxj " * 12
    assert len(known) > len(unknown)
    assert len(tokenise(tokenizer, known).ids) < len(tokenise(tokenizer, unknown).ids)
    messages = [{"role": "user", "content": text} for text in (known, unknown)]

    def measure(candidate: Sequence[Message]) -> int:
        return sum(len(tokenise(tokenizer, turn["content"]).ids) for turn in candidate)

    short = shorten_messages(messages, tokenizer, measure(messages) - 5, measure)
    assert short[0]["content"] == known
    assert len(short[1]["content"]) < len(unknown)
