"""From a request's text to token ids, in a worker thread: the event loop never tokenises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from asr.base.chat_template import special_ids
from asr.data.prompt import EncodedPrompt, encode_prompt
from asr.data.rendering import render_messages
from asr.data.tokens import tokenise_opening
from asr.errors import DataError
from asr.model.request import AUTO, BASE
from asr.serve.api.errors import ApiError, model_not_found
from asr.serve.interface import ServingEngine

Turns = Sequence[dict[str, str]]
_T = TypeVar("_T")

_THREADS = 4
"""Prompts that are tokenised at once: the model's worker needs the interpreter too."""

_limiters: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("_limiters")


def served_model(engine: ServingEngine, name: str | None) -> str:
    """Return the model that a request names.

    Raises:
        ApiError: 404, there is none of that name.
    """
    chosen = AUTO if name is None else name
    domains = engine.served.domains
    if chosen not in (AUTO, BASE) and chosen not in domains:
        raise model_not_found(chosen, domains)
    return chosen


async def encode_turns(engine: ServingEngine, turns: Turns, where: str) -> EncodedPrompt:
    """Render and tokenise a conversation.

    Args:
        engine: whose tokenizer, template and context.
        turns: roles and contents.
        where: the request's field, for messages.

    Raises:
        ApiError: 400, see :func:`asr.data.prompt.encode_prompt`; the last turn is not the user's.
    """
    return await _in_thread(partial(_encode_turns, engine, turns, where))


async def encode_text(engine: ServingEngine, text: str | Sequence[int]) -> EncodedPrompt:
    """Tokenise a raw prompt as it is, special tokens in it included; all else of it is pooled.

    Raises:
        ApiError: 400, it is empty, too long, no valid text, or has nothing to pool; or it names
            token ids that do not exist.
    """
    return await _in_thread(partial(_encode_text, engine, text))


def room_for(
    engine: ServingEngine,
    prompt: EncodedPrompt,
    asked: int | None,
    most: int,
    field: str = "max_tokens",
) -> int:
    """Return the longest answer to a prompt.

    Args:
        engine: whose context.
        prompt: the prompt.
        asked: what the request asks for; None takes what is left of the context.
        most: longest answer that nobody asked for.
        field: where a request asks for it, for messages.

    Raises:
        ApiError: 400, prompt and answer exceed the context.
    """
    tokens, context = len(prompt.input_ids), engine.context_length
    left = context - tokens
    if asked is None and left >= 1:
        return min(left, most)
    if asked is not None and asked <= left:
        return asked
    if left < 1:
        raise _too_long(tokens, context)
    raise ApiError(
        400,
        f"the prompt of {tokens} tokens and {field}={asked} exceed the context of {context}; "
        f"ask for at most {left}, or shorten the prompt",
        param=field,
        code="context_length_exceeded",
    )


def _encode_turns(engine: ServingEngine, turns: Turns, where: str) -> EncodedPrompt:
    if turns[-1]["role"] != "user":
        raise ApiError(
            400,
            f"{where} ends with a message of the role {turns[-1]['role']}; end with one of the "
            "role user",
            param=where,
        )
    try:
        return encode_prompt(turns, engine.tokenizer, engine.template, engine.context_length)
    except DataError as error:
        length = _length(engine, turns)
        if length > engine.context_length:
            raise _too_long(length, engine.context_length) from error
        raise ApiError(400, str(error), param=where) from error


def _length(engine: ServingEngine, turns: Turns) -> int:
    """Return a conversation's number of tokens, 0 where it has none."""
    tokenizer, template = engine.tokenizer, engine.template
    try:
        rendering = render_messages(turns, tokenizer, template, True)
        return len(tokenise_opening(tokenizer, template, rendering).ids)
    except DataError:
        return 0


def _encode_text(engine: ServingEngine, text: str | Sequence[int]) -> EncodedPrompt:
    if isinstance(text, str):
        try:
            ids = tokenise_opening(engine.tokenizer, engine.template, text).ids
        except DataError as error:
            raise ApiError(400, str(error), param="prompt") from error
    else:
        ids = list(text)
        size = len(engine.tokenizer)
        if any(not 0 <= token < size for token in ids):
            raise ApiError(
                400,
                f"the prompt names a token that does not exist; token ids go from 0 to {size - 1}",
                param="prompt",
            )
    if len(ids) > engine.context_length:
        raise _too_long(len(ids), engine.context_length)
    special = special_ids(engine.tokenizer)
    mask = [place > 0 and token not in special for place, token in enumerate(ids)]
    if not any(mask):
        raise ApiError(
            400,
            "the prompt has no text to route on; write at least two tokens of text",
            param="prompt",
        )
    return EncodedPrompt(ids, mask)


def _too_long(tokens: int, context: int) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {tokens} tokens, the context holds {context} with the answer; "
        "shorten the prompt",
        code="context_length_exceeded",
    )


async def _in_thread(work: Callable[[], _T]) -> _T:
    try:
        limiter = _limiters.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiters.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)
