"""Alpaca, ShareGPT, TRACE, plain text and other names of a pair: rows to examples."""

from __future__ import annotations

from typing import Any

import pytest

from asr.data.formats import Example, file_format, to_examples
from asr.data.records import Record
from asr.data.shapes import ANSWERS, PROMPTS, AmbiguousError, Shape, shown_shape
from asr.errors import DataError


def turns(*pairs: tuple[str, str]) -> tuple[dict[str, str], ...]:
    return tuple({"role": role, "content": content} for role, content in pairs)


def example(row: dict[str, Any], fmt: str | None = None) -> Example:
    (found,) = to_examples([Record(1, row)], "a.jsonl", fmt)
    return found


def problem(row: dict[str, Any], fmt: str | None = None) -> str:
    with pytest.raises(DataError) as error:
        example(row, fmt)
    return str(error.value).removeprefix("a.jsonl:1: ")


@pytest.mark.parametrize(
    ("row", "fmt", "expected"),
    [
        (
            {"instruction": "Sum up.", "input": "A text.", "output": "Short.", "text": "### ..."},
            "alpaca",
            turns(("user", "Sum up.\nA text."), ("assistant", "Short.")),
        ),
        (
            {"instruction": "Sing.", "input": "", "output": "La.", "system": "Be loud."},
            "alpaca",
            turns(("system", "Be loud."), ("user", "Sing."), ("assistant", "La.")),
        ),
        (
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "qa"},
            "alpaca",
            turns(("user", "Who?\nAnn came."), ("assistant", "Ann")),
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A"},
                ]
            },
            "sharegpt",
            turns(("system", "S"), ("user", "Q"), ("assistant", "A")),
        ),
        (
            {"conversations": list(turns(("user", "Q"), ("assistant", "A"))), "system": "S"},
            "sharegpt",
            turns(("system", "S"), ("user", "Q"), ("assistant", "A")),
        ),
        ({"prompt": "Q", "answer": "A"}, "trace", turns(("user", "Q"), ("assistant", "A"))),
        (
            {"prompt": "Q", "completion": "A", "system": "S"},
            "prompt-completion",
            turns(("system", "S"), ("user", "Q"), ("assistant", "A")),
        ),
        (
            {"messages": list(turns(("user", "Q"), ("assistant", "A"))), "system": "S"},
            "messages",
            turns(("system", "S"), ("user", "Q"), ("assistant", "A")),
        ),
        (
            {"prompt": "Q", "completion": "A", "system": None, "context": "in Q already"},
            "prompt-completion",
            turns(("user", "Q"), ("assistant", "A")),
        ),
        (
            {"prompt": list(turns(("user", "Q"))), "completion": list(turns(("assistant", "A")))},
            "prompt-completion",
            turns(("user", "Q"), ("assistant", "A")),
        ),
        ({"text": "Once upon a time.", "id": 3}, "text", turns(("text", "Once upon a time."))),
    ],
)
def test_formats(row: dict[str, Any], fmt: str, expected: tuple[dict[str, str], ...]) -> None:
    assert example(row).messages == expected
    assert example(row, fmt).messages == expected
    assert file_format([Record(1, row)]) == fmt


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_other_names_of_a_pair(prompt: str, answer: str) -> None:
    found = example({prompt: "Q", answer: "A", "url": "x"})
    assert found.messages == turns(("user", "Q"), ("assistant", "A"))


@pytest.mark.parametrize(
    ("keys", "shape"),
    [
        (["prompt", "completion", "answer", "question"], ("prompt", "completion")),
        (["instruction", "input", "output"], ("instruction", "output")),
        (["messages", "question", "answer"], ("messages",)),
        (["completion"], ("prompt", "completion")),
        (["question"], None),
        (["text", "label"], None),
        (["text", "url"], None),
        ([], None),
    ],
)
def test_what_keys_show(keys: list[str], shape: tuple[str, ...] | None) -> None:
    found = shown_shape(keys)
    assert (None if found is None else found.keys) == shape


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["question", "query", "answer"], "expected one prompt: 'question', 'query' could each"),
        (["question", "answer", "response"], "expected one completion: 'answer', 'response'"),
        (
            ["question", "context", "answer"],
            "found 'context' beside 'question', 'answer', where it would be lost: put it into the "
            "text of 'question', or leave it out by format: prompt-completion",
        ),
        (["messages", "conversations"], "expected one format: remove the others"),
        (["instruction", "output", "prompt"], r"\(alpaca or prompt-completion\)"),
    ],
)
def test_nothing_is_guessed(keys: list[str], reason: str) -> None:
    with pytest.raises(AmbiguousError, match=reason):
        shown_shape(keys)


def test_a_given_format_decides_and_ignores_the_rest() -> None:
    row = {"prompt": "no", "messages": list(turns(("user", "Q"), ("assistant", "A")))}
    assert example(row, "messages").completion == "A"
    assert example({"text": "T", "label": 1}, "text").completion == "T"
    assert example({"question": "Q", "answer": "A"}, "prompt-completion").completion == "A"
    row = {"question": "Q", "context": "C", "answer": "A"}
    assert example(row, "prompt-completion").messages == turns(("user", "Q"), ("assistant", "A"))
    rows = {"instruction": "I", "input": "X", "output": "Y"}
    assert "found 'instruction', 'output', expected 'prompt' and" in problem(
        rows, "prompt-completion"
    )


def test_a_file_keeps_its_names() -> None:
    rows = [{"question": "Q", "answer": "A"}, {"prompt": "Q", "completion": "A"}]
    with pytest.raises(DataError) as error:
        to_examples([Record(n, row) for n, row in enumerate(rows, 4)], "a.csv", unit="row")
    assert str(error.value) == (
        "a.csv:5: found 'prompt', 'completion', expected 'question' and 'answer' as in row 4: a "
        "file keeps one format"
    )


def test_a_text_counts_as_the_users() -> None:
    found = example({"text": "Once upon a time."})
    assert found.is_text
    assert found.prompt == turns(("user", "Once upon a time."))
    assert found.completion == "Once upon a time."
    assert not example({"prompt": "Q", "answer": "A"}).is_text
    # as kept prompts store it
    assert example({"messages": list(found.messages), "meta": {}}, "messages") == found


def test_a_label_beside_a_text_is_not_lost_silently() -> None:
    assert problem({"text": "T", "label": 1}).endswith(
        "or 'text' (format: text learns 'text' alone)"
    )
    with pytest.raises(DataError, match=r"a\.jsonl:2: found the keys 'text', 'label', expected"):
        to_examples([Record(1, {"text": "T"}), Record(2, {"text": "T", "label": 1})], "a.jsonl")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"instruction": "I", "output": "O", "history": [["a", "b"]]},
            "found earlier turns in 'history', expected none in this format; write them as "
            "'messages'",
        ),
        (
            {"instruction": "I", "input": 3, "output": "O"},
            "found the number 3 in 'input', expected a string",
        ),
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            "found 'bot' in conversations[0].from, expected human, gpt or system",
        ),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]},
            "found the keys 'from' in conversations[1], expected also 'value'",
        ),
        (
            {"messages": list(turns(("assistant", "A"), ("user", "Q"), ("assistant", "B")))},
            "found a first message of the role 'assistant', expected user or system",
        ),
        (
            {"messages": list(turns(("system", "S"), ("user", "Q"))), "system": "T"},
            "found a system prompt in 'system' and another in the first message, expected one",
        ),
        (
            {"prompt": "Q", "answer": "A", "meta": '{"choices": ["A", "B"]}'},
            "found a string in 'meta', expected an object (of a table: in NAME.meta.jsonl beside "
            "it)",
        ),
        ({"text": "a\0b"}, "found a NUL character in 'text', expected text"),
        (
            {"prompt": "Q", "answer": "A", "meta": {"x": [1.5, float("nan")]}},
            "found nan in meta.x[1], expected a finite number or null",
        ),
        (
            {"prompt": "Q", "answer": "A", "meta": {"x": b"y"}},
            "found a value of the type bytes in meta.x, expected text, a number or null",
        ),
    ],
)
def test_bad_rows(row: dict[str, Any], reason: str) -> None:
    assert problem(row) == reason


def test_shape_of_a_partial_row_names_what_is_missing() -> None:
    assert shown_shape(["instruction"]) == Shape("alpaca", ("instruction", "output"))
    assert problem({"instruction": "I"}) == ("found the keys 'instruction', expected also 'output'")
