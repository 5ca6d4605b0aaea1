"""Questions to judge a router with: a file of labelled ones, and one of strangers'.

JSON lines, ``{"domain": NAME or "none", "prompt": "..."}``, optionally ``"group"``, or ``messages``
in place of the prompt. In a file of unknown prompts the domain may be left out, and plain text with
one prompt a line will do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.data.formats import Message
from asr.errors import DataError, unknown

NONE = "none"
"""The label of a question that belongs to no domain; ``base`` says the same."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        messages: its turns, the last a user's.
        domain: where it belongs, or ``none``.
        group: what kind of question it is, "" where nothing is said.
        source: ``file:line``.
    """

    messages: tuple[Message, ...]
    domain: str
    group: str
    source: str

    @property
    def text(self) -> str:
        """What the user said last."""
        return next(m["content"] for m in reversed(self.messages) if m["role"] == "user")


def read_questions(
    path: Path, domains: Collection[str], all_unknown: bool = False
) -> list[Question]:
    """Read a file of questions.

    Args:
        path: the file.
        domains: the model's.
        all_unknown: the file holds strangers' prompts only.

    Raises:
        DataError: the file cannot be read or has no question; a line is no JSON object, lacks the
            prompt or the domain, or names a domain that the model does not have, as ``file:line``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name a file of JSON lines") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give JSON lines in UTF-8") from error
    plain = all_unknown and path.suffix == ".txt"
    found = [
        _question({"prompt": line} if plain else line, f"{path}:{number}", domains, all_unknown)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise DataError(f'{path} has no question; one a line: {{"domain": ..., "prompt": ...}}')
    return found


def _question(
    line: str | dict[str, Any], source: str, domains: Collection[str], all_unknown: bool
) -> Question:
    row: Any = line
    if isinstance(line, str):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source} is no JSON ({error}); one object a line") from error
    if not isinstance(row, dict):
        raise DataError(f'{source} is no JSON object; write {{"domain": ..., "prompt": ...}}')
    domain = row.get("domain", NONE if all_unknown else None)
    if domain is None:
        raise DataError(f"{source} has no 'domain'; name one of the model's, or \"{NONE}\"")
    domain = NONE if domain == "base" else domain
    if domain != NONE and (not isinstance(domain, str) or domain not in domains):
        raise DataError(f"{source}: {unknown('domain', str(domain), [*domains, NONE])}")
    if domain != NONE and all_unknown:
        raise DataError(
            f"{source} belongs to '{domain}', in a file of unknown prompts; use --questions for it"
        )
    return Question(_messages(row, source), domain, str(row.get("group", "")), source)


def _messages(row: dict[str, Any], source: str) -> tuple[Message, ...]:
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        return ({"role": "user", "content": row["prompt"]},)
    turns = row.get("messages")
    fits = isinstance(turns, Sequence) and all(
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not fits or not any(turn["role"] == "user" for turn in turns or ()):
        raise DataError(f"{source} has no 'prompt' with text, nor 'messages' with a user's turn")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns or ())


def questions_of_domains(
    questions: Sequence[Question], prompts: Mapping[str, Collection[str]]
) -> list[str]:
    """Return a line for each question of ``none`` that is word for word a prompt of a domain.

    Args:
        questions: all of them.
        prompts: per domain the texts of its kept prompts.
    """
    return [
        f"{question.source} is labelled {NONE}, but is a prompt of '{name}' word for word"
        for question in questions
        if question.domain == NONE
        for name, texts in prompts.items()
        if question.text.strip() in texts
    ]
