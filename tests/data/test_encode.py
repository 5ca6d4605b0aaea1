"""Token ids and label masks: what is supervised, kept when it gets long, refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from asr.base.chat_template import ChatTemplate
from asr.data.encode import IGNORED, EncodedExample, encode_example, encode_examples, encode_prompt
from asr.data.formats import Example, Message
from asr.data.shorten import DoesNotFitError
from asr.errors import DataError

Tok = PreTrainedTokenizerFast
MakeTok = Callable[..., PreTrainedTokenizerFast]


def talk(*contents: str, system: str | None = None, source: str = "legal.jsonl:7") -> Example:
    """Alternating user and assistant turns."""
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    for index, content in enumerate(contents):
        turns.append({"role": "assistant" if index % 2 else "user", "content": content})
    return Example(tuple(turns), {}, source)


def learned(row: EncodedExample, tokenizer: Tok) -> list[str]:
    """Return the runs of supervised text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def text_of(row: EncodedExample, tokenizer: Tok) -> str:
    return str(tokenizer.decode(row.input_ids))


SYSTEM = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"


def test_chatml(tokenizer: Tok, chatml: ChatTemplate) -> None:
    (row,) = encode_example(talk("How much?", "ten euros"), tokenizer, chatml)
    assert text_of(row, tokenizer) == (
        SYSTEM + "<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\nten euros<|im_end|>"
    )
    assert learned(row, tokenizer) == ["ten euros<|im_end|>"]
    assert row.source == "legal.jsonl:7" and not row.truncated
    assert row.supervised == sum(label != IGNORED for label in row.labels)


def test_llama3_trims_and_writes_its_own_bos(bos_tokenizer: Tok, llama3: ChatTemplate) -> None:
    (row,) = encode_example(talk(" Hi \n", " Yo "), bos_tokenizer, llama3)
    assert text_of(row, bos_tokenizer) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
    )
    assert row.input_ids.count(bos_tokenizer.bos_token_id) == 1
    assert learned(row, bos_tokenizer) == ["Yo<|eot_id|>"]


def test_bos_is_added_where_the_template_leaves_it_out(
    bos_tokenizer: Tok, tokenizer: Tok, chatml: ChatTemplate
) -> None:
    with_bos = ChatTemplate.from_tokenizer(bos_tokenizer, chatml.text)
    (row,) = encode_example(talk("Hi", "Yo"), bos_tokenizer, with_bos)
    (plain,) = encode_example(talk("Hi", "Yo"), tokenizer, chatml)
    assert row.input_ids == [bos_tokenizer.bos_token_id, *plain.input_ids]
    assert row.labels == [IGNORED, *plain.labels]


def test_builtin_template(make_tokenizer: MakeTok) -> None:
    tokenizer = make_tokenizer(bos=True)
    template = ChatTemplate.from_tokenizer(tokenizer)
    (row,) = encode_example(talk("Hi", "Yo"), tokenizer, template)
    assert text_of(row, tokenizer) == (
        "<|begin_of_text|>### User\nHi\n\n### Assistant\nYo<|im_end|>"
    )
    assert learned(row, tokenizer) == ["Yo<|im_end|>"]


def test_every_answer_of_a_conversation_in_one_row(tokenizer: Tok, chatml: ChatTemplate) -> None:
    example = talk("one", "two", "three", "four", "five", "six", system="S")
    (row,) = encode_example(example, tokenizer, chatml)
    assert learned(row, tokenizer) == ["two<|im_end|>", "four<|im_end|>", "six<|im_end|>"]
    assert text_of(row, tokenizer) == chatml.render(example.messages, False).rstrip("\n")


def test_reasoning_tags_in_the_last_turn_only_make_one_row_per_answer(
    tokenizer: Tok, qwen3: ChatTemplate
) -> None:
    rows = encode_example(talk("one", "two", "three", "four"), tokenizer, qwen3)
    assert [learned(row, tokenizer) for row in rows] == [
        ["<think>\n\n</think>\n\ntwo<|im_end|>"],
        ["<think>\n\n</think>\n\nfour<|im_end|>"],
    ]
    assert text_of(rows[1], tokenizer).startswith(
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
    )


@pytest.mark.parametrize("kind", ["chatml", "llama3", "qwen3"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=6))
def test_what_precedes_an_answer_is_what_inference_sees(
    request: pytest.FixtureRequest, kind: str, contents: list[str]
) -> None:
    template = request.getfixturevalue(kind)
    tokenizer = request.getfixturevalue("bos_tokenizer" if kind == "llama3" else "tokenizer")
    # Trimming templates render nothing of a blank content, which the formats refuse anyway.
    contents = [f"x{content}" for content in contents[: len(contents) // 2 * 2]]
    example = talk(*contents)
    rows = encode_example(example, tokenizer, template)
    prompts = []
    for row in rows:
        starts = [
            place
            for place in range(1, len(row.labels))
            if row.labels[place] != IGNORED and row.labels[place - 1] == IGNORED
        ]
        prompts += [row.input_ids[:start] for start in starts]
    assert prompts == [
        encode_prompt(example.messages[:place], tokenizer, template).input_ids
        for place in range(1, len(contents), 2)
    ]


def test_an_answer_that_begins_with_a_line_break_keeps_the_prompts_tokens(
    tokenizer: Tok, chatml: ChatTemplate
) -> None:
    example = talk("one", "\n\ntwo", "three", "four")
    rows = encode_example(example, tokenizer, chatml)
    assert [run for row in rows for run in learned(row, tokenizer)] == [
        "\n\ntwo<|im_end|>",
        "four<|im_end|>",
    ]


def test_end_of_turn_is_appended_where_the_template_writes_none(tokenizer: Tok) -> None:
    text = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    template = ChatTemplate.from_tokenizer(tokenizer, text)
    rows = encode_example(talk("one", "two", "three", "four"), tokenizer, template)
    # the appended token is not in what inference sees of earlier turns: hence two rows
    assert [text_of(row, tokenizer) for row in rows] == [
        "user: one\nassistant: two\n<|im_end|>",
        "user: one\nassistant: two\nuser: three\nassistant: four\n<|im_end|>",
    ]
    assert [learned(row, tokenizer) for row in rows] == [
        ["two\n<|im_end|>"],
        ["four\n<|im_end|>"],
    ]


def test_no_space_is_put_before_an_answer(make_tokenizer: MakeTok, chatml: ChatTemplate) -> None:
    tokenizer = make_tokenizer(prefix_space=True)
    assert tokenizer.decode(tokenizer("Yo")["input_ids"]) == " Yo"
    template = ChatTemplate.from_tokenizer(tokenizer, chatml.text)
    (row,) = encode_example(talk("Hi", "Yo"), tokenizer, template)
    assert learned(row, tokenizer)[0].startswith("Yo")


# Length


LONG = " ".join(f"word{index}" for index in range(60))


def test_the_middle_of_the_longest_user_message_goes(tokenizer: Tok, chatml: ChatTemplate) -> None:
    example = talk("short question", "two", LONG, "four", system="Be brief.")
    (full,) = encode_example(example, tokenizer, chatml)
    limit = len(full.input_ids) - 100
    (row,) = encode_example(example, tokenizer, chatml, limit)
    assert limit - 4 <= len(row.input_ids) <= limit
    assert row.truncated
    assert learned(row, tokenizer) == learned(full, tokenizer)
    text = text_of(row, tokenizer)
    before, _, after = text_of(full, tokenizer).partition(LONG)
    assert text.startswith(before) and text.endswith(after)
    kept = text[len(before) : len(text) - len(after)]
    assert kept.startswith("word0 word1 word2") and kept.endswith("word58 word59")
    head = next(i for i in range(len(kept) + 1) if not LONG.startswith(kept[: i + 1]))
    assert LONG.endswith(kept[head:]) and abs(head - len(kept) / 2) < 12


def test_what_fits_is_not_touched(tokenizer: Tok, chatml: ChatTemplate) -> None:
    example = talk(LONG, "two")
    (full,) = encode_example(example, tokenizer, chatml)
    assert encode_example(example, tokenizer, chatml, len(full.input_ids)) == [full]


def test_the_next_longest_follows(tokenizer: Tok, chatml: ChatTemplate) -> None:
    example = talk(LONG, "two", LONG + " end", "four")
    (row,) = encode_example(example, tokenizer, chatml, 80)
    assert len(row.input_ids) <= 80
    assert learned(row, tokenizer) == ["two<|im_end|>", "four<|im_end|>"]


def test_does_not_fit(tokenizer: Tok, chatml: ChatTemplate) -> None:
    example = talk(LONG, LONG)
    with pytest.raises(DoesNotFitError) as error:
        encode_example(example, tokenizer, chatml, 64)
    (full,) = encode_example(example, tokenizer, chatml)
    needed = error.value.needed
    assert str(error.value) == (
        f"legal.jsonl:7: the example has {len(full.input_ids)} tokens, and {needed} even with its "
        "user messages cut to 8 tokens; 64 are allowed; raise max_length"
    )
    assert len(encode_example(example, tokenizer, chatml, needed)) == 1


def test_the_longest_row_counts(tokenizer: Tok, qwen3: ChatTemplate) -> None:
    rows = encode_example(talk(LONG, "two", "three", "four"), tokenizer, qwen3, 90)
    assert len(rows) == 2 and all(row.truncated for row in rows)
    assert max(len(row.input_ids) for row in rows) <= 90


contents = st.text(st.characters(codec="utf-8"), min_size=1, max_size=120).map(lambda t: f"q{t}")


@pytest.mark.parametrize("kind", ["chatml", "qwen3"])
@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=2, max_size=4), st.integers(30, 200))
def test_answers_stay_whole_and_rows_stay_short(
    request: pytest.FixtureRequest, kind: str, messages: list[str], limit: int
) -> None:
    template = request.getfixturevalue(kind)
    tokenizer = request.getfixturevalue("tokenizer")
    example = talk(*messages[: len(messages) // 2 * 2])
    full = encode_example(example, tokenizer, template)
    try:
        rows = encode_example(example, tokenizer, template, limit)
    except DoesNotFitError as error:
        assert error.needed > limit
        return
    assert all(len(row.input_ids) <= limit for row in rows)

    def answers(rows: list[EncodedExample]) -> list[int]:
        return [label for row in rows for label in row.labels if label != IGNORED]

    assert answers(rows) == answers(full)


# Refusals


def message(example: Example, tokenizer: Tok, template: ChatTemplate) -> str:
    with pytest.raises(DataError) as error:
        encode_example(example, tokenizer, template)
    return str(error.value)


def test_no_continuation_of_the_prompt(tokenizer: Tok, chatml: ChatTemplate) -> None:
    text = chatml.text.replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
    )
    template = ChatTemplate.from_tokenizer(tokenizer, text)
    assert message(talk("Hi", "Yo"), tokenizer, template) == (
        "legal.jsonl:7: the chat template does not render message 2 (assistant) as a continuation "
        "of its prompt, so there is no telling what to learn; use another chat template"
    )


def test_an_answer_that_is_not_rendered(tokenizer: Tok, chatml: ChatTemplate) -> None:
    text = chatml.text.replace("message['content']", "message['content'].split('</x>')[-1]")
    template = ChatTemplate.from_tokenizer(tokenizer, text)
    assert message(talk("Hi", "Yo</x>"), tokenizer, template) == (
        "legal.jsonl:7: the chat template renders nothing of message 2 (assistant); use another "
        "chat template"
    )


def test_the_templates_refusal_names_the_row(bos_tokenizer: Tok, llama3: ChatTemplate) -> None:
    turns = [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]
    found = message(Example(tuple(turns), {}, "legal.jsonl:9"), bos_tokenizer, llama3)
    assert found == (
        "legal.jsonl:9: the base's chat template refuses a conversation of the roles user, user: "
        "Conversation roles must alternate; change the messages, or use another chat template"
    )


def test_the_assistant_speaks_first(tokenizer: Tok, chatml: ChatTemplate) -> None:
    turns = ({"role": "assistant", "content": "Hi"}, *talk("a", "b").messages)
    assert message(Example(turns, {}, "x:1"), tokenizer, chatml) == (
        "x:1: the first message is the assistant's; begin with a user or system message"
    )


def test_a_slow_tokenizer(
    make_tokenizer: MakeTok, chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DataError, match="is not a fast one and gives no character positions"):
        encode_example(talk("a", "b"), tokenizer, chatml)
    with pytest.raises(DataError, match=r"use a base with a tokenizer\.json"):
        encode_prompt("a", tokenizer, chatml)


# A whole data set


def test_report(tokenizer: Tok, chatml: ChatTemplate) -> None:
    examples = [
        talk("one", "two", source="legal.jsonl:1"),
        talk(LONG, "two", source="legal.jsonl:2"),
        talk("one", LONG, source="legal.jsonl:3"),
    ]
    encoded = encode_examples(examples, tokenizer, chatml, 80)
    report = encoded.report
    assert [row.source for row in encoded.rows] == ["legal.jsonl:1", "legal.jsonl:2"]
    assert (report.examples, report.rows, report.truncated) == (3, 2, 1)
    assert report.dropped == ("legal.jsonl:3",)
    assert report.supervised_tokens == sum(row.supervised for row in encoded.rows)
    assert report.total_tokens == sum(len(row.input_ids) for row in encoded.rows)
    assert str(report) == (
        f"3 examples, 2 rows, {report.total_tokens} tokens ({report.supervised_tokens} supervised),"
        " 1 shortened, 1 dropped (legal.jsonl:3)"
    )
    everything = encode_examples(examples, tokenizer, chatml)
    assert everything.report.dropped == () and everything.report.truncated == 0
    assert str(everything.report).endswith(" 0 shortened, 0 dropped")


def test_report_names_the_first_dropped(tokenizer: Tok, chatml: ChatTemplate) -> None:
    examples = [talk("a", LONG, source=f"x:{i}") for i in range(5)] + [talk("a", "b")]
    report = encode_examples(examples, tokenizer, chatml, 80).report
    assert str(report).endswith("5 dropped (x:0, x:1, x:2 and 2 more)")


@pytest.mark.parametrize(
    ("count", "noun"),
    [(1, "the only example does not fit"), (3, "none of the 3 examples fits")],
)
def test_all_labels_masked(tokenizer: Tok, chatml: ChatTemplate, count: int, noun: str) -> None:
    examples = [talk(LONG, LONG + " more" * index) for index in range(count)]
    with pytest.raises(DataError) as error:
        encode_examples(examples, tokenizer, chatml, 64)
    with pytest.raises(DoesNotFitError) as shortest:
        encode_example(examples[0], tokenizer, chatml, 64)
    needed = shortest.value.needed
    assert str(error.value) == (
        f"legal.jsonl: all labels masked: {noun} into max_length 64 with the answer whole (the "
        f"shortest needs {needed} tokens); raise max_length to at least {needed}, or give shorter "
        "answers"
    )
    with pytest.raises(DataError, match="law: all labels masked"):
        encode_examples(examples, tokenizer, chatml, 64, name="law")


def test_refused_examples_are_all_listed(tokenizer: Tok, chatml: ChatTemplate) -> None:
    bad = [talk("a \ud83d", "b", source=f"legal.jsonl:{line}") for line in range(1, 31)]
    with pytest.raises(DataError) as error:
        encode_examples([talk("a", "b"), *bad], tokenizer, chatml)
    lines = str(error.value).splitlines()
    assert lines[0] == (
        "legal.jsonl: 30 of 31 examples cannot be encoded; mend or remove (the first 20):"
    )
    assert len(lines) == 21 and lines[1].startswith("legal.jsonl:1: the text holds")
    with pytest.raises(DataError, match="1 of 1 examples cannot be encoded; mend or remove:"):
        encode_examples(bad[:1], tokenizer, chatml)


def test_no_examples(tokenizer: Tok, chatml: ChatTemplate) -> None:
    with pytest.raises(DataError) as error:
        encode_examples([], tokenizer, chatml, name="legal")
    assert str(error.value) == "legal: there are no examples to encode; give at least one"
