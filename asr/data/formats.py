"""From rows to examples: ``messages``, or ``prompt`` and ``completion``.

A file keeps one of the two formats. Keys of a row beyond these and ``meta`` are ignored; keys of a
*message* beyond role and content are refused unless null, because dropping them (tool calls, parts,
weights) would silently train on something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.data.problems import RowProblems
from asr.data.records import Record, describe
from asr.errors import DataError, did_you_mean, unknown

Message = dict[str, str]
"""One turn: ``{"role": "system" | "user" | "assistant", "content": text}``."""

ROLES = ("system", "user", "assistant")
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
}
"""Format name -> the keys that a row of it must have."""

_KEYS = ("messages", "prompt", "completion", "meta")


@dataclass(frozen=True)
class Example:
    """One conversation that ends with the answer to learn.

    Attributes:
        messages: turns; the last is the assistant's, at least one is the user's.
        meta: the row's own ``meta`` object (choices, tests, ids), empty without one.
        source: ``file.jsonl:12``, for messages.
    """

    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant message."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The last assistant message's text."""
        return self.messages[-1]["content"]

    @property
    def prompt_key(self) -> str:
        """sha256 (hex) of the canonical prompt; equal prompts have equal keys."""
        return hashlib.sha256(canonical_messages(self.prompt).encode()).hexdigest()


def canonical_messages(messages: Iterable[Message]) -> str:
    """Return turns as JSON without spaces: ``[["user","..."],["assistant","..."]]``."""
    pairs = [[message["role"], message["content"]] for message in messages]
    return json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))


class _BadExampleError(ValueError):
    """What was found and what was expected, for one row."""


def to_examples(
    records: Sequence[Record],
    path: Path | str,
    fmt: str | None = None,
    limit_errors: int = 20,
) -> list[Example]:
    """Return one example per record, in the same order.

    Args:
        records: rows of one file.
        path: that file, for messages.
        fmt: ``messages`` or ``prompt-completion``; None takes the first row's that shows one.
        limit_errors: how many bad rows the error lists; all are counted.

    Raises:
        DataError: an unknown ``fmt``; or bad rows, all in one error: no known keys, missing keys
            (names the nearest key), both formats in a row or in the file, wrong types, unknown
            roles, empty or non-string contents, an answer that is not last, no user message.
    """
    path = Path(path)
    if fmt is not None and fmt not in FORMATS:
        raise DataError(unknown("data format", fmt, FORMATS))
    first_line = None
    if fmt is None:
        shown = ((_row_format(record), record.line) for record in records)
        fmt, first_line = next(((f, line) for f, line in shown if f), (None, None))
    examples: list[Example] = []
    problems = RowProblems(path, limit_errors)
    for record in records:
        try:
            _check_format(record, fmt, first_line)
            messages = _messages_of(record.values, fmt or "messages")
            meta = record.values.get("meta")
            if meta is not None and not isinstance(meta, dict):
                raise _BadExampleError(f"found {describe(meta)} in 'meta', expected an object")
        except _BadExampleError as error:
            problems.add(record.line, str(error))
        else:
            examples.append(Example(messages, meta or {}, f"{path.name}:{record.line}"))
    problems.raise_if_any(len(records))
    return examples


def _row_format(record: Record) -> str | None:
    """Return the one format whose keys the row has any of; None for neither or both."""
    shown = [name for name, keys in FORMATS.items() if any(key in record.values for key in keys)]
    return shown[0] if len(shown) == 1 else None


def _quoted(keys: Iterable[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _check_format(record: Record, fmt: str | None, first_line: int | None) -> None:
    keys = record.values
    both = "messages" in keys and ("prompt" in keys or "completion" in keys)
    if both:
        found = _quoted(key for key in ("messages", "prompt", "completion") if key in keys)
        raise _BadExampleError(
            f"found {found} in one row, expected either 'messages' or 'prompt' and 'completion'"
        )
    other = _row_format(record)
    if fmt is None or (other is None and first_line is None):
        expected = "'messages', or 'prompt' and 'completion'"
        if fmt is not None:
            expected = " and ".join(f"'{key}'" for key in FORMATS[fmt])
        raise _BadExampleError(f"found {_found_keys(keys, _KEYS)}, expected {expected}")
    if other is not None and other != fmt:
        wanted = " and ".join(f"'{key}'" for key in FORMATS[fmt])
        seen = _quoted(key for key in FORMATS[other] if key in keys)
        where = f" as in line {first_line}" if first_line is not None else ""
        raise _BadExampleError(f"found {seen}, expected {wanted}{where}: a file keeps one format")
    missing = [key for key in FORMATS[fmt] if key not in keys]
    if missing:
        also = "also " if len(missing) < len(FORMATS[fmt]) else ""
        expected = also + " and ".join(f"'{key}'" for key in missing)
        raise _BadExampleError(f"found {_found_keys(keys, missing)}, expected {expected}")


def _found_keys(values: dict[str, Any], choices: Iterable[str]) -> str:
    """Return the row's keys for a message, with the nearest known key where one looks mistyped."""
    if not values:
        return "no keys"
    choices = list(choices)
    hints = (did_you_mean(key, choices) for key in values if key not in _KEYS)
    return "the keys " + _quoted(values) + next((hint for hint in hints if hint), "")


def _messages_of(values: dict[str, Any], fmt: str) -> tuple[Message, ...]:
    if fmt == "messages":
        messages = _turns(values["messages"], "messages")
    else:
        completion = values["completion"]
        if not isinstance(completion, str) or not completion.strip():
            raise _BadExampleError(
                f"found {describe(completion)} in 'completion', expected a non-empty string"
            )
        messages = [*_prompt_turns(values["prompt"]), _turn("assistant", completion)]
    if not any(message["role"] == "user" for message in messages):
        raise _BadExampleError("found no user message, expected at least one")
    if messages[-1]["role"] != "assistant":
        raise _BadExampleError(
            f"found a last message of the role '{messages[-1]['role']}', expected 'assistant'"
        )
    return tuple(messages)


def _prompt_turns(prompt: object) -> list[Message]:
    if isinstance(prompt, str) and prompt.strip():
        return [_turn("user", prompt)]
    if not isinstance(prompt, list):
        raise _BadExampleError(
            f"found {describe(prompt)} in 'prompt', expected a non-empty string or messages"
        )
    turns = _turns(prompt, "prompt")
    if turns[-1]["role"] == "assistant":
        raise _BadExampleError(
            "found a last message of the role 'assistant' in 'prompt', expected 'user': the answer "
            "belongs in 'completion'"
        )
    return turns


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(value: object, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise _BadExampleError(f"found {describe(value)} in '{key}', expected an array of messages")
    if not value:
        raise _BadExampleError(f"found an empty array in '{key}', expected at least one message")
    return [_checked_turn(turn, f"{key}[{index}]") for index, turn in enumerate(value)]


def _checked_turn(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise _BadExampleError(
            f"found {describe(turn)} in {where}, expected an object with 'role' and 'content'"
        )
    required = ("role", "content")
    missing = [key for key in required if key not in turn]
    if missing:
        extra = [key for key in turn if key not in required]
        hint = next((h for h in (did_you_mean(key, missing) for key in extra) if h), "")
        found = ("the keys " + _quoted(turn) if turn else "no keys") + hint
        raise _BadExampleError(f"found {found} in {where}, expected also {_quoted(missing)}")
    for key, value in turn.items():
        if key not in required and value is not None:
            raise _BadExampleError(
                f"found the key '{key}' in {where}, expected only 'role' and 'content'"
            )
    role, content = turn["role"], turn["content"]
    if not isinstance(role, str):
        raise _BadExampleError(f"found {describe(role)} in {where}.role, expected a string")
    if role not in ROLES:
        raise _BadExampleError(
            f"found the role '{role}'{did_you_mean(role, ROLES)} in {where}, "
            f"expected {', '.join(ROLES)}"
        )
    if not isinstance(content, str) or not content.strip():
        raise _BadExampleError(
            f"found {describe(content)} in {where}.content, expected a non-empty string"
        )
    return _turn(role, content)
