"""Rows that are wrong in one place: every format, every required key, every wrong kind of value."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from benchmarks.malformed.case import Case, checked

Row = dict[str, Any]

USER = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris"}

GOOD: dict[str, Row] = {
    "messages": {"messages": [USER, ANSWER]},
    "prompt-completion": {"prompt": "Add 1 and 2.", "completion": "3"},
    "alpaca": {"instruction": "Translate.", "input": "chat", "output": "cat"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    },
    "trace": {"prompt": "Is it so?", "answer": "yes"},
    "text": {"text": "The river flows to the sea."},
}
"""A good row of every format."""

REQUIRED = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "trace": ("prompt", "answer"),
    "text": ("text",),
}

WRONG_VALUES: dict[str, Any] = {
    "null": None,
    "a number": 7,
    "true": True,
    "an empty string": "",
    "white space": " \n\t",
    "an object": {"a": 1},
    "an empty array": [],
    "an array of numbers": [1, 2],
}
"""No required key may hold any of these."""

WRONG_TURNS: dict[str, list[Any]] = {
    "a turn that is text": ["Hello", ANSWER],
    "a turn that is null": [USER, None, ANSWER],
    "a turn without keys": [USER, {}, ANSWER],
    "a turn without role": [{"content": "Hello"}, ANSWER],
    "a turn without content": [{"role": "user"}, ANSWER],
    "an unknown role": [{"role": "robot", "content": "Hello"}, ANSWER],
    "a role in capitals": [{"role": "USER", "content": "Hello"}, ANSWER],
    "a role that is a number": [{"role": 1, "content": "Hello"}, ANSWER],
    "an empty role": [{"role": "", "content": "Hello"}, ANSWER],
    "a tool's turn": [USER, {"role": "tool", "content": "{}"}, ANSWER],
    "an empty content": [{"role": "user", "content": ""}, ANSWER],
    "a content of parts": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, ANSWER],
    "a content that is null": [USER, {"role": "assistant", "content": None}],
    "tool calls": [USER, {**ANSWER, "tool_calls": [{"name": "f"}]}],
    "no answer": [USER],
    "the user last": [USER, ANSWER, USER],
    "no user": [{"role": "system", "content": "Be kind."}, ANSWER],
    "the answer first": [ANSWER, USER, ANSWER],
    "a NUL in a content": [{"role": "user", "content": "a\0b"}, ANSWER],
}

WRONG_SHARED: dict[str, list[Any]] = {
    "an unknown speaker": [{"from": "martian", "value": "x"}, {"from": "gpt", "value": "y"}],
    "a speaker that is null": [{"from": None, "value": "x"}, {"from": "gpt", "value": "y"}],
    "no value": [{"from": "human"}, {"from": "gpt", "value": "y"}],
    "an empty value": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}],
    "a value that is a list": [{"from": "human", "value": ["x"]}, {"from": "gpt", "value": "y"}],
    "two ways to name turns": [{"from": "human", "value": "x"}, ANSWER],
    "the human last": [{"from": "human", "value": "x"}],
    "a weight": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": 0}],
}

WRONG_ROWS: dict[str, tuple[str, Row]] = {
    "two formats in one row": ("messages", {**GOOD["messages"], "prompt": "x"}),
    "another format than the rows before": ("messages", GOOD["prompt-completion"]),
    "another pair of names than before": ("trace", {"question": "x", "answer": "y"}),
    "a prompt that ends with an answer": (
        "prompt-completion",
        {"prompt": [USER, ANSWER], "completion": "x"},
    ),
    "a completion that begins with the user": (
        "prompt-completion",
        {"prompt": "x", "completion": [USER, ANSWER]},
    ),
    "earlier turns beside an instruction": (
        "alpaca",
        {**GOOD["alpaca"], "history": [["a", "b"]]},
    ),
    "an input that is a list": ("alpaca", {**GOOD["alpaca"], "input": ["a"]}),
    "a system prompt that is a number": ("sharegpt", {**GOOD["sharegpt"], "system": 3}),
    "a label beside a text": ("text", {**GOOD["text"], "label": 3}),
    "meta that is text": ("trace", {**GOOD["trace"], "meta": "A"}),
    "meta that is an array": ("trace", {**GOOD["trace"], "meta": ["A", "B"]}),
    "meta that is a number": ("trace", {**GOOD["trace"], "meta": 1}),
}


def rows_of(fmt: str, count: int) -> list[Row]:
    """Return good rows of a format with different prompts."""
    rows = []
    for index in range(count):
        row = copy.deepcopy(GOOD[fmt])
        first = REQUIRED[fmt][0]
        if fmt == "messages":
            row[first][0]["content"] += f" ({index})"
        elif fmt == "sharegpt":
            row[first][0]["value"] += f" ({index})"
        else:
            row[first] += f" ({index})"
        rows.append(row)
    return rows


def lines(rows: list[Row]) -> bytes:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def with_bad(fmt: str, bad: Row) -> bytes:
    """Return four good rows and, as the third, a bad one."""
    rows = rows_of(fmt, 4)
    return lines([*rows[:2], bad, *rows[2:]])


def cases() -> Iterator[Case]:
    """Yield them all."""
    for fmt, keys in REQUIRED.items():
        for key in keys:
            rest = {name: value for name, value in GOOD[fmt].items() if name != key}
            bad = {f"without '{key}'": rest, f"'{key}' mistyped": {**rest, key + "e": GOOD[fmt]}}
            bad |= {f"'{key}' is {what}": {**rest, key: v} for what, v in WRONG_VALUES.items()}
            for what, row in bad.items():
                yield checked("a wrong value", f"{fmt}: {what}", "data.jsonl", with_bad(fmt, row))
    for what, turns in WRONG_TURNS.items():
        content = with_bad("messages", {"messages": turns})
        yield checked("a wrong turn", f"messages: {what}", "data.jsonl", content)
    for what, turns in WRONG_SHARED.items():
        content = with_bad("sharegpt", {"conversations": turns})
        yield checked("a wrong turn", f"sharegpt: {what}", "data.jsonl", content)
    for what, (fmt, row) in WRONG_ROWS.items():
        yield checked("a wrong row", f"{fmt}: {what}", "data.jsonl", with_bad(fmt, row))
    for asked in GOOD:
        for fmt in GOOD:
            # prompt and answer are a pair under its other names
            pair = (fmt, asked) == ("trace", "prompt-completion")
            if not set(REQUIRED[asked]) <= set(GOOD[fmt]) and not pair:
                yield checked(
                    "another format asked for",
                    f"{fmt} read as {asked}",
                    "data.jsonl",
                    lines(rows_of(fmt, 3)),
                    "--format",
                    asked,
                )
    unclear = {
        "question, query and answer": {"question": "a", "query": "b", "answer": "c"},
        "question, answer and output": {"question": "a", "answer": "b", "output": "c"},
        "text and label": {"text": "a", "label": 1},
        "question alone": {"question": "a"},
        "columns of something else": {"premise": "a", "hypothesis": "b", "entailed": True},
        "keys in capitals": {"Prompt": "a", "Completion": "b"},
        "no keys": {},
    }
    for what, row in unclear.items():
        yield checked("no known keys", what, "data.jsonl", lines([row] * 5))
