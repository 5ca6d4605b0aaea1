"""Turns that end with another token, and conversations whose first row is the longest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from asr.base.chat_template import ChatTemplate
from asr.data.encode import IGNORED, encode_example, encode_examples, join_encoded
from asr.data.formats import Example, Message

Tok = PreTrainedTokenizerFast

ENDS = (  # a turn ends with <|eot_id|>, under a system message with <|im_end|>
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>' if messages[0]['role'] == 'system' else '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # earlier answers lose what they thought
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def talk(*contents: str, system: str | None = None) -> Example:
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    for index, content in enumerate(contents):
        turns.append({"role": "assistant" if index % 2 else "user", "content": content})
    return Example(tuple(turns), {}, "legal.jsonl:7")


def test_an_answer_is_taught_the_end_that_the_template_writes(tokenizer: Tok) -> None:
    template = ChatTemplate.from_tokenizer(tokenizer, ENDS)
    ends = tokenizer.convert_ids_to_tokens(list(template.end_of_turn_ids))
    assert ends == ["<|eot_id|>", "<|im_end|>"]
    for system, end in ((None, "<|eot_id|>"), ("S", "<|im_end|>")):
        (row,) = encode_example(talk("one", "two", system=system), tokenizer, template)
        assert row.labels[-1] == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|im_end|>"])
def test_an_end_that_an_answer_speaks_of_is_text(tokenizer: Tok, end: str) -> None:
    template = ChatTemplate.from_tokenizer(tokenizer, ENDS)
    (row,) = encode_example(talk("one", f"two{end}three"), tokenizer, template)
    learned = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(learned) == f"two{end}three<|eot_id|>"
    assert [token for token in learned if token in template.end_of_turn_ids] == learned[-1:]


def test_every_row_is_shortened_to_fit_not_the_last_alone(tokenizer: Tok) -> None:
    template = ChatTemplate.from_tokenizer(tokenizer, THINKING)
    thought = " ".join(f"step{index}" for index in range(30))
    example = talk("question " * 40, f"<think>{thought}</think>two", "three", "four")
    first, last = encode_example(example, tokenizer, template)
    assert len(first.input_ids) > len(last.input_ids) + 50
    limit = len(first.input_ids) - 10
    rows = encode_example(example, tokenizer, template, limit)
    assert [len(row.input_ids) <= limit for row in rows] == [True, True]
    answers = [[label for label in row.labels if label != IGNORED] for row in rows]
    assert answers == [[x for x in row.labels if x != IGNORED] for row in (first, last)]


def test_views_of_the_same_examples_count_them_once(
    tokenizer: Tok, chatml: ChatTemplate, make_tokenizer: Callable[..., Tok]
) -> None:
    examples = [talk("word " * 80, "two"), talk("one", "two"), talk("one", "word " * 90)]
    one = encode_examples(examples, tokenizer, chatml, 60)
    joined = join_encoded([one, one])
    assert joined.rows == (*one.rows, *one.rows)
    report = joined.report
    assert (report.examples, report.rows, report.truncated) == (3, 4, 1)
    assert report.dropped == one.report.dropped == ("legal.jsonl:7",)
    assert report.total_tokens == 2 * one.report.total_tokens
    assert report.supervised_tokens == 2 * one.report.supervised_tokens
