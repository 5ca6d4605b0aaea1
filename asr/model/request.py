"""What a routed model is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asr.errors import DataError
from asr.router import Decision

AUTO = "auto"
BASE = "base"

Prompt = str | Sequence[Mapping[str, str]]
"""A user message, or a conversation as ``[{"role": ..., "content": ...}, ...]``."""


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer, without special tokens.
        adapter: the domain whose adapter answered, or ``base``.
        decision: the router's decision; None where the adapter was named by the caller.
        prompt_tokens: length of the rendered prompt.
        new_tokens: tokens generated, the end token included.
        finish: ``stop`` (the model ended its turn) or ``length``.
    """

    text: str
    adapter: str
    decision: Decision | None
    prompt_tokens: int
    new_tokens: int
    finish: str


def turns_of(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a text as it is, and a conversation as a list of its own.

    Raises:
        DataError: it is neither.
    """
    if isinstance(prompt, str):
        return prompt
    turns: list[dict[str, str]] = []
    for message in prompt if isinstance(prompt, Sequence) else [prompt]:
        fits = isinstance(message, Mapping) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not fits or not isinstance(message, Mapping):
            raise DataError(
                f"{message!r:.80} is no message; a prompt is a text, or a list of "
                '{"role": ..., "content": ...} with texts'
            )
        turns.append(dict(message))
    return turns
