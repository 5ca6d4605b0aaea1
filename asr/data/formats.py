"""From rows to examples: conversations, pairs, instructions and plain texts.

====================  ==================================================================
format                keys
====================  ==================================================================
``messages``          ``messages``: turns of ``role`` and ``content``
``prompt-completion`` ``prompt`` (text or turns) and ``completion``, or names that mean it
``alpaca``            ``instruction``, ``output``; may have ``input``
``sharegpt``          ``conversations``: turns of ``from`` and ``value``
``trace``             ``prompt`` and ``answer``
``text``              ``text``: all of it is learned, there is no user
====================  ==================================================================

A file keeps one of them, the one that its first row shows. All but ``text`` may have a system
prompt under ``system``. Other keys of a row are ignored, but for ``meta``, an object for scorers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.data.problems import LISTED, BadRowError, RowProblems, describe
from asr.data.records import Record
from asr.data.shapes import (
    FORMATS,
    KNOWN_KEYS,
    AmbiguousError,
    Shape,
    alternatives,
    given_shape,
    shown_shape,
)
from asr.data.turns import (
    ROLES,
    TEXT_ROLE,
    Message,
    check_conversation,
    checked_text,
    checked_turns,
    quoted,
    shared_turns,
    turn,
)
from asr.errors import DataError, did_you_mean, unknown

__all__ = ["FORMATS", "ROLES", "Example", "Message", "canonical_messages", "to_examples"]


@dataclass(frozen=True)
class Example:
    """One conversation that ends with the answer to learn, or one plain text.

    Attributes:
        messages: turns; the last is the assistant's, at least one is the user's. A plain text is
            one turn of the role ``text``.
        meta: what scorers read (choices, tests, ids), empty without any.
        source: ``file.jsonl:12``, for messages.
    """

    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def is_text(self) -> bool:
        """Whether this is a plain text: learned as a whole, without a chat template."""
        return self.messages[0]["role"] == TEXT_ROLE

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant message.

        A plain text as a whole counts as the user's words: by them it is routed, told from others
        and cut.
        """
        if self.is_text:
            return (turn("user", self.messages[0]["content"]),)
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The last assistant message's text; of a plain text all of it."""
        return self.messages[-1]["content"]

    @property
    def prompt_key(self) -> str:
        """sha256 (hex) of the canonical prompt; equal prompts have equal keys."""
        return hashlib.sha256(canonical_messages(self.prompt).encode()).hexdigest()


def canonical_messages(messages: Iterable[Message]) -> str:
    """Return turns as JSON without spaces: ``[["user","..."],["assistant","..."]]``."""
    pairs = [[message["role"], message["content"]] for message in messages]
    return json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))


def to_examples(
    records: Sequence[Record],
    path: Path | str,
    fmt: str | None = None,
    limit_errors: int = LISTED,
    *,
    unit: str = "line",
    problems: RowProblems | None = None,
) -> list[Example]:
    """Return one example per record, in the same order.

    Args:
        records: rows of one file.
        path: that file, for messages.
        fmt: one of ``FORMATS``; None takes the first row's that shows one.
        limit_errors: how many bad rows the error lists; all are counted.
        unit: what the records' numbers count, for messages.
        problems: takes the bad rows instead of an error; their examples are left out.

    Raises:
        DataError: an unknown ``fmt``; or bad rows, all in one error: no known keys, missing keys
            (names the nearest key), several formats in a row or in the file, wrong types, unknown
            roles, empty or non-string contents, an answer that is not last, no user message. Rows
            that all have the same unknown keys are one problem.
    """
    path = Path(path)
    if fmt is not None and fmt not in FORMATS:
        raise DataError(unknown("data format", fmt, FORMATS))
    shape, first = _file_shape(records, fmt)
    as_in = f" as in {unit} {first}" if fmt is None and first is not None else ""
    _refuse_same_keys(records, path, shape, fmt)
    examples: list[Example] = []
    found = RowProblems(path, limit_errors) if problems is None else problems
    for record in records:
        try:
            _check_keys(record.values, shape, fmt, as_in)
            assert shape is not None  # or every row is refused
            messages = tuple(_READERS[shape.format](record.values, shape.keys))
            meta = _checked_meta(record.values.get("meta"))
        except BadRowError as error:
            found.add(record.line, str(error))
        else:
            examples.append(Example(messages, meta, f"{path.name}:{record.line}"))
    if problems is None:
        found.raise_if_any(len(records))
    return examples


def file_format(records: Sequence[Record], fmt: str | None = None) -> str | None:
    """Return the format of a file's rows, None where none of them shows one."""
    shape, _ = _file_shape(records, fmt)
    return None if shape is None else shape.format


def _file_shape(records: Sequence[Record], fmt: str | None) -> tuple[Shape | None, int | None]:
    """Return the file's shape, and the number of the row that showed it."""
    if fmt is not None:
        return given_shape(fmt, records[0].values if records else ()), None
    for record in records:
        try:
            shape = shown_shape(record.values)
        except AmbiguousError:
            continue  # reported when its turn comes
        if shape is not None:
            return shape, record.line
    return None, None


def _refuse_same_keys(
    records: Sequence[Record], path: Path, shape: Shape | None, fmt: str | None
) -> None:
    """Say once what is true of every row: a table whose columns are called something else."""
    if len(records) > 1 and all(r.values.keys() == records[0].values.keys() for r in records):
        try:
            _check_keys(records[0].values, shape, fmt, "")
        except BadRowError as error:
            raise DataError(
                f"{path}:{records[0].line}: {error} (and so in all {len(records)} rows)"
            ) from error


def _check_keys(
    values: Mapping[str, Any], shape: Shape | None, fmt: str | None, as_in: str
) -> None:
    """Refuse a row that does not have the keys of the file's shape."""
    shown: Shape | None = None
    try:
        shown = shown_shape(values)
    except AmbiguousError as error:
        if fmt is None:
            raise BadRowError(str(error)) from error
    if shape is None:
        hint = " (format: text learns 'text' alone)" if "text" in values else ""
        found = _found_keys(values, KNOWN_KEYS)
        raise BadRowError(f"found {found}, expected {alternatives()}{hint}")
    missing = [key for key in shape.keys if key not in values]
    seen = [] if shown is None else [key for key in shown.keys if key in values]
    # with a format given, whatever else a row holds is ignored
    if not set(seen) <= set(shape.keys) and (missing or fmt is None):
        raise BadRowError(
            f"found {quoted(seen)}, expected {_all_of(shape.keys)}{as_in}: a file keeps one format"
        )
    if missing:
        also = "also " if len(missing) < len(shape.keys) else ""
        found = _found_keys(values, missing)
        raise BadRowError(f"found {found}, expected {also}{_all_of(missing)}")
    if shape.format == "text" and shown is None and fmt is None:
        raise BadRowError(
            f"found the keys {quoted(values)}, expected 'text' alone{as_in} (format: text learns "
            "'text' alone)"
        )


def _all_of(keys: Iterable[str]) -> str:
    return " and ".join(f"'{key}'" for key in keys)


def _found_keys(values: Mapping[str, Any], choices: Iterable[str]) -> str:
    """Return the row's keys for a message, with the nearest known key where one looks mistyped."""
    if not values:
        return "no keys"
    choices = list(choices)
    hints = (did_you_mean(key, choices) for key in values if key not in KNOWN_KEYS)
    return "the keys " + quoted(values) + next((hint for hint in hints if hint), "")


# -- one reader per format: a row and the names of its required keys in, turns out -----------------

Reader = Callable[[Mapping[str, Any], tuple[str, ...]], list[Message]]


def _messages(values: Mapping[str, Any], keys: tuple[str, ...]) -> list[Message]:
    value = values[keys[0]]
    if isinstance(value, list) and len(value) == 1 and _is_text(value[0]):
        return [turn(TEXT_ROLE, checked_text(value[0]["content"], "messages[0].content"))]
    turns = _with_system(values, checked_turns(value, keys[0]))
    check_conversation(turns)
    return turns


def _is_text(item: object) -> bool:
    """Whether a turn is a plain text, as kept prompts store it."""
    return (
        isinstance(item, dict)
        and item.keys() == {"role", "content"}
        and (item["role"] == TEXT_ROLE)
    )


def _pair(values: Mapping[str, Any], keys: tuple[str, ...]) -> list[Message]:
    prompt_key, answer_key = keys
    answer = values[answer_key]
    answers = (
        checked_turns(answer, answer_key)
        if isinstance(answer, list)
        else [turn("assistant", checked_text(answer, f"'{answer_key}'"))]
    )
    asked = _prompt_turns(values[prompt_key], prompt_key, answer_key)
    turns = _with_system(values, [*asked, *answers])
    if answers[0]["role"] != "assistant":
        raise BadRowError(
            f"found a first message of the role '{answers[0]['role']}' in '{answer_key}', "
            "expected 'assistant'"
        )
    check_conversation(turns)
    return turns


def _prompt_turns(prompt: object, key: str, answer_key: str) -> list[Message]:
    if not isinstance(prompt, list):
        return [turn("user", checked_text(prompt, f"'{key}'", "a non-empty string or messages"))]
    turns = checked_turns(prompt, key)
    if turns[-1]["role"] == "assistant":
        raise BadRowError(
            f"found a last message of the role 'assistant' in '{key}', expected 'user': the answer "
            f"belongs in '{answer_key}'"
        )
    return turns


def _alpaca(values: Mapping[str, Any], keys: tuple[str, ...]) -> list[Message]:
    instruction_key, answer_key = keys
    if values.get("history"):
        raise BadRowError(
            "found earlier turns in 'history', expected none in this format; write them as "
            "'messages'"
        )
    asked = checked_text(values[instruction_key], f"'{instruction_key}'")
    input_key = "input" if "input" in values else "context"
    given = values.get(input_key)
    if given is not None and (not isinstance(given, str) or given.strip()):
        asked += "\n" + checked_text(given, f"'{input_key}'", "a string")
    answer = checked_text(values[answer_key], f"'{answer_key}'")
    return _with_system(values, [turn("user", asked), turn("assistant", answer)])


def _sharegpt(values: Mapping[str, Any], keys: tuple[str, ...]) -> list[Message]:
    turns = _with_system(values, shared_turns(values[keys[0]], keys[0]))
    check_conversation(turns)
    return turns


def _with_system(values: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """Put the system prompt of a row that has one in a key of its own before its turns."""
    system = values.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return turns
    text = checked_text(system, "'system'", "a string")
    if turns[0]["role"] == "system":
        raise BadRowError(
            "found a system prompt in 'system' and another in the first message, expected one"
        )
    return [turn("system", text), *turns]


def _text(values: Mapping[str, Any], keys: tuple[str, ...]) -> list[Message]:
    return [turn(TEXT_ROLE, checked_text(values[keys[0]], f"'{keys[0]}'"))]


_READERS: dict[str, Reader] = {
    "messages": _messages,
    "prompt-completion": _pair,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "trace": _pair,
    "text": _text,
}


def _checked_meta(meta: object) -> dict[str, Any]:
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        beside = " (of a table: in NAME.meta.jsonl beside it)" if isinstance(meta, str) else ""
        raise BadRowError(f"found {describe(meta)} in 'meta', expected an object{beside}")
    _check_plain(meta, "meta")
    return meta


def _check_plain(value: object, where: str) -> None:
    """Refuse what is no JSON, as Parquet files may hold it: it could be neither kept nor hashed."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRowError(f"found {value} in {where}, expected a finite number or null")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise BadRowError(f"found the key {key!r} in {where}, expected text")
            _check_plain(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise BadRowError(f"found {describe(value)} in {where}, expected text, a number or null")
