"""Rows to examples: both formats, and every way in which a row can be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from asr.data.formats import Example, to_examples
from asr.data.records import Record
from asr.errors import DataError

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}
GOOD = {"messages": [USER, ANSWER]}


def problems(*rows: dict[str, Any], fmt: str | None = None, **options: int) -> list[str]:
    records = [Record(line, row) for line, row in enumerate(rows, start=1)]
    with pytest.raises(DataError) as error:
        to_examples(records, "data/legal.jsonl", fmt, **options)
    return str(error.value).splitlines()


def test_messages() -> None:
    rows = [
        {"messages": [SYSTEM, USER, ANSWER, USER, {**ANSWER, "name": None}], "id": 7},
        {"messages": [USER, ANSWER], "meta": {"choices": ["A", "B"]}},
    ]
    first, second = to_examples([Record(3, rows[0]), Record(9, rows[1])], "data/legal.jsonl")
    assert first == Example((SYSTEM, USER, ANSWER, USER, ANSWER), {}, "legal.jsonl:3")
    assert first.prompt == (SYSTEM, USER, ANSWER, USER)
    assert first.completion == "A"
    assert second == Example((USER, ANSWER), {"choices": ["A", "B"]}, "legal.jsonl:9")


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("Q", (USER,)),
        ([SYSTEM, USER], (SYSTEM, USER)),
        ([USER, ANSWER, USER], (USER, ANSWER, USER)),
    ],
)
def test_prompt_and_completion(prompt: object, turns: tuple[dict[str, str], ...]) -> None:
    row = {"prompt": prompt, "completion": "A"}
    assert to_examples([Record(1, row)], "x.jsonl") == [Example((*turns, ANSWER), {}, "x.jsonl:1")]
    assert to_examples([Record(1, row)], "x.jsonl", "prompt-completion")[0].completion == "A"


def test_equal_prompts_have_equal_keys_in_either_format() -> None:
    (chat,) = to_examples([Record(1, GOOD)], "a.jsonl")
    (pair,) = to_examples([Record(8, {"prompt": "Q", "completion": "other"})], "b.jsonl")
    (longer,) = to_examples([Record(1, {"messages": [SYSTEM, USER, ANSWER]})], "a.jsonl")
    assert chat.prompt_key == pair.prompt_key != longer.prompt_key
    assert len(chat.prompt_key) == 64


def test_contents_are_kept_as_they_are() -> None:
    row = {"prompt": "  Q\n", "completion": "\tA "}
    (example,) = to_examples([Record(1, row)], "x.jsonl")
    assert example.prompt[0]["content"] == "  Q\n"
    assert example.completion == "\tA "


def turns(*messages: object) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        # keys
        (
            {"mesages": []},
            "found the keys 'mesages' (did you mean 'messages'?), expected 'messages'",
        ),
        ({}, "found no keys, expected 'messages'"),
        (
            {"text": "x"},
            "found 'text', expected 'messages' as in line 1: a file keeps one format",
        ),
        ({"id": "x"}, "found the keys 'id', expected 'messages'"),
        (
            {"messages": [USER, ANSWER], "prompt": "Q"},
            "found 'messages', 'prompt' in one row, expected one format: remove the others, or say "
            "which with format (messages or prompt-completion)",
        ),
        (
            {"prompt": "Q", "completion": "A"},
            "found 'prompt', 'completion', expected 'messages' as in line 1: a file keeps one "
            "format",
        ),
        # the array
        ({"messages": "Q"}, "found a string in 'messages', expected an array of messages"),
        ({"messages": None}, "found null in 'messages', expected an array of messages"),
        ({"messages": []}, "found an empty array in 'messages', expected at least one message"),
        (
            turns("Q"),
            "found a string in messages[0], expected an object with 'role' and 'content'",
        ),
        # a message
        (
            turns({"role": "user", "contents": "Q"}),
            "found the keys 'role', 'contents' (did you mean 'content'?) in messages[0], expected "
            "also 'content'",
        ),
        (turns({}), "found no keys in messages[0], expected also 'role', 'content'"),
        (
            turns(USER, {**ANSWER, "tool_calls": []}),
            "found the key 'tool_calls' in messages[1], expected only 'role' and 'content'",
        ),
        (
            turns({"role": "User", "content": "Q"}),
            "found the role 'User' (did you mean 'user'?) in messages[0], expected system, user, "
            "assistant",
        ),
        (
            turns({"role": "gpt", "content": "Q"}),
            "found the role 'gpt' in messages[0], expected system, user, assistant",
        ),
        (
            turns({"role": 1, "content": "Q"}),
            "found the number 1 in messages[0].role, expected a string",
        ),
        (
            turns({"role": "user", "content": " \n"}),
            "found an empty string in messages[0].content, expected a non-empty string",
        ),
        (
            turns({"role": "user", "content": [{"type": "text"}]}),
            "found an array in messages[0].content, expected a non-empty string",
        ),
        (
            turns({"role": "user", "content": 1.5}),
            "found the number 1.5 in messages[0].content, expected a non-empty string",
        ),
        # the conversation
        (turns(SYSTEM, ANSWER), "found no user message, expected at least one"),
        (
            turns(USER, ANSWER, USER),
            "found a last message of the role 'user', expected 'assistant'",
        ),
        # meta
        ({**GOOD, "meta": [1]}, "found an array in 'meta', expected an object"),
    ],
)
def test_bad_messages_row(row: dict[str, Any], problem: str) -> None:
    assert problems(GOOD, row) == [
        f"data/legal.jsonl:2: {problem}",
    ]


PAIR = {"prompt": "Q", "completion": "A"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"prompt": "Q", "complettion": "A"},
            "found the keys 'prompt', 'complettion' (did you mean 'completion'?), expected also "
            "'completion'",
        ),
        ({"completion": "A"}, "found the keys 'completion', expected also 'prompt'"),
        (
            {"text": "A"},
            "found 'text', expected 'prompt' and 'completion' as in line 1: a file keeps one "
            "format",
        ),
        (
            GOOD,
            "found 'messages', expected 'prompt' and 'completion' as in line 1: a file keeps "
            "one format",
        ),
        (
            {"prompt": " ", "completion": "A"},
            "found an empty string in 'prompt', expected a non-empty string or messages",
        ),
        (
            {"prompt": {}, "completion": "A"},
            "found an object in 'prompt', expected a non-empty string or messages",
        ),
        (
            {"prompt": [], "completion": "A"},
            "found an empty array in 'prompt', expected at least one message",
        ),
        (
            {"prompt": [USER, ANSWER], "completion": "A"},
            "found a last message of the role 'assistant' in 'prompt', expected 'user': the answer "
            "belongs in 'completion'",
        ),
        ({"prompt": [SYSTEM], "completion": "A"}, "found no user message, expected at least one"),
        (
            {"prompt": "Q", "completion": ""},
            "found an empty string in 'completion', expected a non-empty string",
        ),
        (
            {"prompt": "Q", "completion": True},
            "found true in 'completion', expected a non-empty string",
        ),
    ],
)
def test_bad_pair_row(row: dict[str, Any], problem: str) -> None:
    assert problems(PAIR, row) == [f"data/legal.jsonl:2: {problem}"]


ANY = (
    "'messages'; 'prompt' and 'completion'; 'instruction' and 'output'; 'conversations'; 'prompt' "
    "and 'answer'; or 'text'"
)


def test_no_row_shows_a_format() -> None:
    assert problems({"mesages": 1}, {"x": 1}) == [
        "data/legal.jsonl: 2 of 2 rows cannot be used; mend or remove:",
        f"legal.jsonl:1: found the keys 'mesages' (did you mean 'messages'?), expected {ANY}",
        f"legal.jsonl:2: found the keys 'x', expected {ANY}",
    ]


def test_a_given_format_is_kept_to() -> None:
    assert problems(PAIR, {"x": 1}, fmt="messages")[1:] == [
        "legal.jsonl:1: found 'prompt', 'completion', expected 'messages': a file keeps one format",
        "legal.jsonl:2: found the keys 'x', expected 'messages'",
    ]


def test_unknown_format() -> None:
    assert problems(GOOD, fmt="message") == [
        "unknown data format 'message' (did you mean 'messages'?); there are: alpaca, messages, "
        "prompt-completion, sharegpt, text, trace"
    ]


def test_every_bad_row_is_reported() -> None:
    rows = [GOOD, {}, GOOD, {"messages": []}, {"prompt": "Q"}]
    assert [line.split(": ")[0] for line in problems(*rows)[1:]] == [
        "legal.jsonl:2",
        "legal.jsonl:4",
        "legal.jsonl:5",
    ]
    assert len(problems(GOOD, *[{}] * 9, limit_errors=4)) == 5


def test_no_records() -> None:
    assert to_examples([], "x.jsonl") == []
