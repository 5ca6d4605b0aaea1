"""Plain texts as rows to train on, and the built-in template with a base that has none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from asr.base.chat_template import ChatTemplate
from asr.data.encode import IGNORED, encode_example, encode_examples
from asr.data.formats import Example
from asr.data.prompt import encode_prompt
from asr.data.report import mask_segments
from tests.data.conftest import build_tokenizer

PLAIN = build_tokenizer()
WITH_BOS = build_tokenizer(bos=True, eos="<|eot_id|>")

contents = st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=60).filter(
    lambda text: text.strip() and "<|" not in text and "\0" not in text
)


def text(content: str) -> Example:
    return Example(({"role": "text", "content": content},), {}, "a.jsonl:1")


def chat(*contents: str, system: str | None = None) -> Example:
    turns = [] if system is None else [{"role": "system", "content": system}]
    for place, content in enumerate(contents):
        turns.append({"role": ("user", "assistant")[place % 2], "content": content})
    return Example(tuple(turns), {}, "a.jsonl:1")


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS])
@settings(max_examples=80, deadline=None)
@given(content=contents, limit=st.one_of(st.none(), st.integers(2, 40)))
def test_every_token_of_a_text_is_learned_once(
    tokenizer: PreTrainedTokenizerFast, content: str, limit: int | None
) -> None:
    template = ChatTemplate.from_tokenizer(tokenizer)
    rows = encode_example(text(content), tokenizer, template, limit)
    whole = tokenizer(content)["input_ids"] + [template.end_of_turn_ids[0]]
    learned = [label for row in rows for label in row.labels if label != IGNORED]
    assert [rows[0].input_ids[0], *learned] == whole
    for row in rows:
        assert 2 <= len(row.input_ids) <= (limit or len(whole))
        assert row.labels == [IGNORED, *row.input_ids[1:]]
    for before, after in itertools.pairwise(rows):
        assert after.input_ids[0] == before.input_ids[-1]


def test_a_text_sees_no_template() -> None:
    template = ChatTemplate.from_tokenizer(PLAIN)
    (row,) = encode_example(text("one two three"), PLAIN, template)
    assert PLAIN.decode(row.input_ids) == "one two three<|im_end|>"


def test_texts_are_counted() -> None:
    template = ChatTemplate.from_tokenizer(PLAIN)
    report = encode_examples([text("one two three " * 9)], PLAIN, template, 16).report
    assert (report.examples, report.truncated, report.dropped) == (1, 0, ())
    # every row but the first begins with a token of the row before it
    assert report.supervised_tokens == report.total_tokens - report.rows and report.rows > 2


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS])
@settings(max_examples=60, deadline=None)
@given(turns=st.lists(contents, min_size=1, max_size=3), system=st.one_of(st.none(), contents))
def test_the_builtin_template_trains_what_it_asks(
    tokenizer: PreTrainedTokenizerFast, turns: list[str], system: str | None
) -> None:
    assert tokenizer.chat_template is None
    template = ChatTemplate.from_tokenizer(tokenizer)
    assert template.is_builtin
    example = chat(*(part for turn in turns for part in (turn, f"{turn}!")), system=system)
    rows = encode_example(example, tokenizer, template)
    prompt = encode_prompt(example.prompt, tokenizer, template).input_ids
    row = rows[-1]
    assert row.input_ids[: len(prompt)] == prompt
    answer = row.input_ids[len(prompt) :]
    assert row.labels[len(prompt) :] == answer
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == example.completion
    assert sum(row.supervised for row in rows) == sum(
        len(tokenizer(message["content"], add_special_tokens=False)["input_ids"]) + 1
        for message in example.messages
        if message["role"] == "assistant"
    )


def test_what_is_learned_with_the_builtin_template() -> None:
    template = ChatTemplate.from_tokenizer(WITH_BOS)
    rows = encode_example(chat("one", "two", "three", "four", system="five"), WITH_BOS, template)
    assert [mask_segments(row, WITH_BOS) for row in rows] == [
        [
            (
                "<|begin_of_text|>### System\nfive\n\n### User\none\n\n### Assistant\n",
                False,
            ),
            ("two<|eot_id|>", True),
            ("\n\n### User\nthree\n\n### Assistant\n", False),
            ("four<|eot_id|>", True),
        ]
    ]
