"""What a routed model is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asr.base.load import LoadedBase
from asr.data.prompt import EncodedPrompt, encode_prompt
from asr.data.turns import ROLES
from asr.errors import DataError, unknown
from asr.router import Decision

AUTO = "auto"
BASE = "base"

Prompt = str | Sequence[Mapping[str, str]]
"""A user message, or a conversation as ``[{"role": ..., "content": ...}, ...]``."""


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer, without special tokens and without what the chat template itself writes
            before an answer (empty reasoning tags).
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


def listed_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return prompts as a list.

    Raises:
        DataError: there is none; or it is a single text, or a single conversation: each character
            or turn of it would be answered as a prompt of its own.
    """
    if isinstance(prompts, str):
        raise DataError(f"a text where a list of prompts is needed; give [{prompts!r:.60}]")
    given = list(prompts)
    if not given:
        raise DataError("no prompts given; give at least one")
    if any(isinstance(prompt, Mapping) for prompt in given):
        raise DataError(
            "messages where a list of prompts is needed; give a list of conversations: "
            '[[{"role": ..., "content": ...}, ...]]'
        )
    return given


def encode_prompts(
    prompts: Sequence[Prompt], base: LoadedBase, *, shorten: bool = False
) -> list[EncodedPrompt]:
    """Render and tokenise prompts.

    Args:
        prompts: user messages or conversations.
        base: the loaded base.
        shorten: cut a prompt beyond the base's context in the middle of its longest user message,
            to route it; otherwise it is refused.

    Raises:
        DataError: no list of prompts; a prompt is empty, malformed or longer than the base's
            context, named by its position.
    """
    given = listed_prompts(prompts)
    encoded = []
    for index, prompt in enumerate(given):
        try:
            encoded.append(
                encode_prompt(
                    turns_of(prompt),
                    base.tokenizer,
                    base.template,
                    base.context_length,
                    shorten=shorten,
                )
            )
        except DataError as error:
            where = f"prompt {index + 1}: " if len(given) > 1 else ""
            raise DataError(f"{where}{error}") from error
    return encoded


def require_room(prompts: Sequence[EncodedPrompt], max_new_tokens: int, context: int) -> None:
    """Refuse prompts that leave no room for the answer.

    Raises:
        DataError: ``max_new_tokens`` is no whole number from 1 up; or a prompt and it exceed the
            base's context: names the longest by its position.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise DataError(f"max_new_tokens is {max_new_tokens!r}; it must be 1 or more")
    lengths = [len(prompt.input_ids) for prompt in prompts]
    longest = max(lengths)
    if longest + max_new_tokens > context:
        which = f"{lengths.index(longest) + 1} " if len(lengths) > 1 else ""
        raise DataError(
            f"prompt {which}of {longest} tokens and max_new_tokens={max_new_tokens} exceed the "
            f"base's context of {context}; shorten the prompt or lower max_new_tokens"
        )


def turns_of(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a text as it is, and a conversation as a list of its own.

    Raises:
        DataError: it is neither, or a role is unknown.
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
        if message["role"] not in ROLES:
            raise DataError(unknown("role", message["role"], ROLES))
        turns.append(dict(message))
    return turns
