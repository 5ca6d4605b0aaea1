"""Rendering messages so that no message can pass for the chat template.

Tokenizers take ``<|im_end|>`` for the end of a turn wherever it stands, so a user's text that holds
it could end the user's turn and begin another. All contents are text here: control tokens within
them are marked before the template sees them, and where the marks come out, the tokens are written
out (:mod:`asr.data.tokens`). Only what the template writes itself is control. Messages that hold no
control token are rendered and tokenised as they always were.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from asr.base.chat_template import ChatTemplate
from asr.data.tokens import Rendering, tokenise
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_messages(
    messages: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    add_generation_prompt: bool,
) -> Rendering:
    """Render a conversation, and tell where control tokens in it are the messages' text.

    An assistant's message may hold tokens that were added without being special (``<think>``): the
    model writes them itself.

    Args:
        messages: one mapping per turn with ``role`` and ``content``.
        tokenizer: the base's, a fast one.
        template: the base's.
        add_generation_prompt: end with the header of a new assistant turn.

    Raises:
        DataError: no messages; the template refuses them, or takes a control token in one apart; a
            content holds a lone surrogate.
    """
    ranges = [_control_ranges(message, tokenizer, template) for message in messages]
    if not any(ranges):
        return Rendering(template.render(messages, add_generation_prompt))
    nonce = str(secrets.randbits(64))  # not to be guessed by whoever wrote the messages
    begin, end = f"\uf8ff{nonce}\uf8fe", f"\uf8fe{nonce}\uf8ff"
    marked = [
        {**message, "content": _marked(message["content"], places, begin, end)}
        for message, places in zip(messages, ranges, strict=True)
    ]
    rendered = template.render(marked, add_generation_prompt)
    text, literal = "", []
    pieces = re.split(f"{begin}(.*?){end}", rendered, flags=re.DOTALL)
    for index, piece in enumerate(pieces):
        if index % 2:
            literal.append((len(text), len(text) + len(piece)))
        text += piece
    if nonce in text:
        found = next(
            message["content"][slice(*places[0])]
            for message, places in zip(messages, ranges, strict=True)
            if places
        )
        raise DataError(
            f"the chat template takes the text '{found}' of a message apart, so it cannot be told "
            "from the template's own tokens; take it out, or use another chat template"
        )
    return Rendering(text, tuple(literal), template.control_ids)


def _control_ranges(
    message: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
) -> list[tuple[int, int]]:
    """Return the character ranges of a content that the tokenizer would take for control tokens."""
    content = message["content"]
    control = template.turn_ids if message["role"] == "assistant" else template.control_ids
    if not template.may_hold_control(content):
        return []
    tokens = tokenise(tokenizer, content)
    ranges = []
    for token, (begin, end) in zip(tokens.ids, tokens.offsets, strict=True):
        if token in control:
            # Some tokens take the white space around them in, which templates trim.
            text = content[begin:end]
            begin += len(text) - len(text.lstrip())
            ranges.append((begin, begin + len(text.strip())))
    return ranges


def _marked(content: str, ranges: Sequence[tuple[int, int]], begin: str, end: str) -> str:
    pieces, place = [], 0
    for first, last in ranges:
        pieces += [content[place:first], begin, content[first:last], end]
        place = last
    return "".join([*pieces, content[place:]])
