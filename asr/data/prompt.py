"""A prompt's token ids, and which of them are the user's own words.

Routing pools the hidden states of the user's content tokens. The mask travels with the request; it
is made here, from character positions, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr.base.chat_template import ChatTemplate, special_ids
from asr.data.formats import Message
from asr.data.rendering import render_messages
from asr.data.shorten import DoesNotFitError, shorten_messages
from asr.data.tokens import Tokens, require_fast, tokenise_opening
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\uf8ff"  # private use: the place of a user's content in a rendering

# What templates do to a content before they write it.
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt ready for the prefix pass.

    Notation: n tokens.

    Attributes:
        input_ids: (n,) token ids of the rendering with the generation prompt.
        pool_mask: (n,) True on content tokens of the user's messages; at least one is.
        shortened: whether tokens were taken out of the longest user message.
    """

    input_ids: list[int]
    pool_mask: list[bool]
    shortened: bool = False


def encode_prompt(
    messages: Sequence[Message] | str,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    max_length: int | None = None,
    *,
    shorten: bool = False,
) -> EncodedPrompt:
    """Encode a prompt exactly as training encodes what precedes an answer.

    Pooled are the tokens of *all* user messages' contents: never template text, special tokens or
    position 0, where a massive activation sits. Special tokens that a user typed are text, and
    pooled as such. A token that also covers template text counts if it holds a visible character of
    the content.

    Args:
        messages: turns; a string is one user message.
        tokenizer: the base's, a fast one.
        template: the base's.
        max_length: tokens allowed, None for no limit.
        shorten: cut a longer prompt in the middle of its longest user message; otherwise it
            is refused.

    Raises:
        DataError: no user message; the template refuses the turns; the tokenizer is not fast; the
            prompt is longer than ``max_length`` and may not or cannot be shortened; a content is
            not found in the rendering, or its control tokens cannot be told from the template's
            (:func:`asr.data.rendering.render_messages`); no token is left to pool (only white
            space).
    """
    require_fast(tokenizer)
    turns: Sequence[Message] = (
        [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    )
    if not any(turn["role"] == "user" for turn in turns):
        raise DataError("a prompt has no user message; give at least one")

    def tokens_of(candidate: Sequence[Message]) -> Tokens:
        rendering = render_messages(candidate, tokenizer, template, True)
        return tokenise_opening(tokenizer, template, rendering)

    tokens = tokens_of(turns)
    shortened = max_length is not None and len(tokens.ids) > max_length
    if shortened and max_length is not None:
        if not shorten:
            raise DataError(
                f"prompt has {len(tokens.ids)} tokens, the base's context holds {max_length}; "
                "shorten the prompt"
            )
        try:
            turns = shorten_messages(turns, tokenizer, max_length, lambda t: len(tokens_of(t).ids))
        except DoesNotFitError as error:
            raise DataError(f"prompt has {error}; shorten the prompt") from error
        tokens = tokens_of(turns)
    rendered = render_messages(turns, tokenizer, template, True).text
    spans = content_spans(turns, template, rendered)
    mask = _pool_mask(rendered, spans, tokens, special_ids(tokenizer))
    pooled = (offset for offset, on in zip(tokens.offsets, mask, strict=True) if on)
    if not any(rendered[begin:end].strip() for begin, end in pooled):
        raise DataError("the prompt has no text to route on (only white space); write one")
    return EncodedPrompt(tokens.ids, mask, shortened)


def _pool_mask(
    rendered: str, spans: Sequence[tuple[int, int]], tokens: Tokens, special: frozenset[int]
) -> list[bool]:
    mask = [False] * len(tokens.ids)
    token = 0
    for begin, end in spans:
        while token < len(mask) and tokens.offsets[token][1] <= begin:
            token += 1
        place = token  # a token may touch two contents: the next span starts looking here again
        while place < len(mask) and tokens.offsets[place][0] < end:
            first, last = tokens.offsets[place]
            within = begin <= first and last <= end
            visible = rendered[max(first, begin) : min(last, end)].strip() != ""
            content = first < last and (within or visible)
            mask[place] |= content and place > 0 and tokens.ids[place] not in special
            place += 1
    return mask


def content_spans(
    turns: Sequence[Message], template: ChatTemplate, rendered: str
) -> list[tuple[int, int]]:
    """Return the character ranges of the user's contents in their rendering, in order.

    The turns are rendered again with marks in place of the contents; what stands between the marks
    is template text. Putting the contents back (trimmed, as many templates do) must give the same
    rendering. A content as short as "user" is thereby not mistaken for the template's own word.
    Where a template looks into contents and so renders the marks otherwise, contents are searched
    for in order.

    Raises:
        DataError: a content is not found: the template changes it by more than trimming.
    """
    users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    marked = [dict(turn) for turn in turns]
    for index in users:
        marked[index]["content"] = f"{_MARK}{index}{_MARK}"
    pieces = re.split(f"{_MARK}(\\d+){_MARK}", template.render(marked, True))
    literals, places = pieces[::2], [int(index) for index in pieces[1::2]]
    if places == users:
        for trim in _TRIMS:
            spans, text = [], literals[0]
            for index, literal in zip(places, literals[1:], strict=True):
                content = trim(turns[index]["content"])
                spans.append((len(text), len(text) + len(content)))
                text += content + literal
            if text == rendered:
                return spans
    return _searched_spans(turns, rendered)


def _searched_spans(turns: Sequence[Message], rendered: str) -> list[tuple[int, int]]:
    spans, cursor = [], 0
    for index, turn in enumerate(turns):
        content = turn["content"].strip()
        begin = rendered.find(content, cursor)
        if begin >= 0:
            cursor = begin + len(content)
            if turn["role"] == "user":
                spans.append((begin, cursor))
        elif turn["role"] == "user":
            raise DataError(
                f"the content of message {index + 1} (user) is not found in the rendered prompt: "
                "the chat template changes it, so its tokens cannot be told from the template's; "
                "use another chat template"
            )
    return spans
