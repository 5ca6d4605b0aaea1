"""The prompts of a command: its arguments, a file, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr.data.problems import RowProblems
from asr.data.records import Record
from asr.data.source import read_source
from asr.data.turns import ROLES
from asr.errors import DataError

STDIN = "-"

Turns = list[dict[str, str]]
Asked = str | Turns
"""A user message, or a conversation."""


def read_prompts(arguments: Sequence[str] | None, file: Path | None) -> list[Asked]:
    """Return the prompts of a command, those of the arguments first.

    Raises:
        DataError: there are none; a file that cannot be read, or rows of it without a prompt.
    """
    texts = list(arguments or [])
    if texts.count(STDIN) + (str(file) == STDIN) > 1:
        raise DataError("standard input can be read once only; give - once")
    prompts: list[Asked] = [_all_of_stdin() if text == STDIN else text for text in texts]
    if file is not None:
        prompts += _of_stdin() if str(file) == STDIN else _of_file(file)
    if not prompts:
        raise DataError(
            "no prompt given; write one in quotes, name a file with --file, or - for standard input"
        )
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str) and not prompt.strip():
            where = f"prompt {index + 1}" if len(prompts) > 1 else "the prompt"
            raise DataError(f"{where} is empty; write one")
    return prompts


def described(prompt: Asked) -> dict[str, Any]:
    """Return how a prompt stands in JSON output: under ``prompt`` or ``messages``."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}


def last_words(prompt: Asked) -> str:
    """Return what the user said last, on one line."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    spoken = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return " ".join(spoken[-1].split()) if spoken else ""


def _all_of_stdin() -> str:
    return sys.stdin.read().strip()


def _of_stdin() -> list[Asked]:
    import tempfile

    # The reader of JSON lines reads files: its errors name the line.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "standard-input.jsonl"
        copy.write_text(sys.stdin.read(), encoding="utf-8")
        try:
            return _of_file(copy)
        except DataError as error:
            raise DataError(str(error).replace(str(copy), "standard input")) from error


def _of_file(path: Path) -> list[Asked]:
    if path.suffix.lower() == ".txt":
        return _of_text(path)
    problems = RowProblems(path)
    source = read_source(path, problems)
    problems.raise_if_any(source.rows)
    if not source.records:
        raise DataError(f"{path}: the file has 0 rows; a row needs prompt or messages")
    return [_prompt_of(record, path) for record in source.records]


def _of_text(path: Path) -> list[Asked]:
    try:
        # not splitlines, which breaks at form feeds and other marks within a line too
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    prompts: list[Asked] = [line for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path}: the file has 0 prompts; one a line is expected")
    return prompts


def _prompt_of(record: Record, path: Path) -> Asked:
    """Return a row's prompt; an answer that a row of a data file ends with is left out."""
    where = f"{path}:{record.line}"
    prompt = record.values.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    messages = record.values.get("messages")
    if not isinstance(messages, list):
        found = ", ".join(record.values) or "nothing"
        raise DataError(
            f"{where}: found the keys {found}; a row needs prompt (text) or messages (turns)"
        )
    turns: Turns = []
    for turn in messages:
        if not (
            isinstance(turn, dict)
            and turn.get("role") in ROLES
            and isinstance(turn.get("content"), str)
        ):
            raise DataError(
                f"{where}: a turn needs role (system, user or assistant) and content (text)"
            )
        turns.append({"role": turn["role"], "content": turn["content"]})
    if turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not any(turn["role"] == "user" for turn in turns):
        raise DataError(f"{where}: messages have no user turn to answer")
    return turns
