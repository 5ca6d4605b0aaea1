"""Turns of a conversation, checked: what a message of a row may be.

Keys of a message beyond its role and content are refused unless null, because dropping them (tool
calls, parts, weights) would silently train on something else.
"""

from __future__ import annotations

from collections.abc import Iterable

from asr.data.problems import BadRowError, describe
from asr.errors import did_you_mean

Message = dict[str, str]
"""One turn: ``{"role": "system" | "user" | "assistant", "content": text}``.

A plain text is one turn of the role ``text`` alone; no other turn has that role.
"""

ROLES = ("system", "user", "assistant")
TEXT_ROLE = "text"

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


def turn(role: str, content: str) -> Message:
    """Return one turn."""
    return {"role": role, "content": content}


def checked_text(value: object, where: str, expected: str = "a non-empty string") -> str:
    """Return a text that says something.

    Raises:
        BadRowError: it is no string, holds only white space, or a NUL character.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"found {describe(value)} in {where}, expected {expected}")
    if "\0" in value:
        raise BadRowError(f"found a NUL character in {where}, expected text")
    return value


def checked_turns(value: object, key: str) -> list[Message]:
    """Return an array of ``{"role": ..., "content": ...}`` as turns; ``key``: where it stands.

    Raises:
        BadRowError: it is none, empty, or a turn of it is wrong.
    """
    if not isinstance(value, list):
        raise BadRowError(f"found {describe(value)} in '{key}', expected an array of messages")
    if not value:
        raise BadRowError(f"found an empty array in '{key}', expected at least one message")
    return [_checked_turn(item, f"{key}[{index}]") for index, item in enumerate(value)]


def shared_turns(value: object, key: str) -> list[Message]:
    """Return an array of ShareGPT's ``{"from": ..., "value": ...}`` as turns.

    Some sets keep ``role`` and ``content`` under ``conversations``: those are taken as well.

    Raises:
        BadRowError: as :func:`checked_turns`.
    """
    if not isinstance(value, list) or not value:
        return checked_turns(value, key)
    if all(isinstance(item, dict) and "role" in item and "from" not in item for item in value):
        return checked_turns(value, key)
    turns = []
    for index, item in enumerate(value):
        where = f"{key}[{index}]"
        _check_keys(item, where, ("from", "value"))
        assert isinstance(item, dict)
        speaker = item["from"]
        if not isinstance(speaker, str):
            raise BadRowError(f"found {describe(speaker)} in {where}.from, expected a string")
        if speaker not in _SPEAKERS:
            raise BadRowError(
                f"found '{speaker}'{did_you_mean(speaker, _SPEAKERS)} in {where}.from, expected "
                "human, gpt or system"
            )
        turns.append(turn(_SPEAKERS[speaker], checked_text(item["value"], f"{where}.value")))
    return turns


def check_conversation(messages: list[Message]) -> None:
    """Refuse turns that are no conversation to learn an answer from.

    Raises:
        BadRowError: no user message; the answer is not last; an answer comes first.
    """
    if not any(message["role"] == "user" for message in messages):
        raise BadRowError("found no user message, expected at least one")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(
            f"found a last message of the role '{messages[-1]['role']}', expected 'assistant'"
        )
    if messages[0]["role"] == "assistant":
        raise BadRowError("found a first message of the role 'assistant', expected user or system")


def quoted(keys: Iterable[str]) -> str:
    """Return keys for a message: ``'a', 'b'``."""
    return ", ".join(f"'{key}'" for key in keys)


def _checked_turn(item: object, where: str) -> Message:
    _check_keys(item, where, ("role", "content"))
    assert isinstance(item, dict)
    role, content = item["role"], item["content"]
    if not isinstance(role, str):
        raise BadRowError(f"found {describe(role)} in {where}.role, expected a string")
    if role not in ROLES:
        raise BadRowError(
            f"found the role '{role}'{did_you_mean(role, ROLES)} in {where}, "
            f"expected {', '.join(ROLES)}"
        )
    return turn(role, checked_text(content, f"{where}.content"))


def _check_keys(item: object, where: str, required: tuple[str, str]) -> None:
    names = " and ".join(f"'{key}'" for key in required)
    if not isinstance(item, dict):
        raise BadRowError(f"found {describe(item)} in {where}, expected an object with {names}")
    missing = [key for key in required if key not in item]
    if missing:
        extra = [key for key in item if key not in required]
        hint = next((h for h in (did_you_mean(key, missing) for key in extra) if h), "")
        found = ("the keys " + quoted(item) if item else "no keys") + hint
        raise BadRowError(f"found {found} in {where}, expected also {quoted(missing)}")
    for key, value in item.items():
        if key not in required and value is not None:
            raise BadRowError(f"found the key '{key}' in {where}, expected only {names}")
