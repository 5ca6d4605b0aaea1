"""Shortening a conversation inside its longest user message.

Only the middle of user messages goes: their heads hold instructions and their tails questions,
while template text and answers must stay whole (a prompt cut from the outside loses its template,
an answer cut anywhere teaches nonsense or nothing at all).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asr.data.formats import Message
from asr.data.tokens import tokenise
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT_TOKENS = 8
"""No user message is cut below so many tokens (half of them its head, half its tail)."""


class DoesNotFitError(DataError):
    """A conversation that is too long even with its user messages cut down.

    Attributes:
        needed: tokens it still takes then.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


def shorten_messages(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    measure: Callable[[Sequence[Message]], int],
) -> tuple[Message, ...]:
    """Return the turns, cut so that ``measure`` gives at most ``limit`` tokens.

    Tokens come out of the middle of the longest user message; when that is down to
    ``KEPT_TOKENS``, out of the next longest. The first of equally long ones goes first. The cut is
    measured again after each step, because the two ends may tokenise otherwise once joined.

    Args:
        messages: turns; never changed.
        tokenizer: a fast one, for character positions.
        limit: tokens allowed.
        measure: how many tokens given turns take, rendered.

    Raises:
        DoesNotFitError: it cannot be made to fit.
    """
    length = measure(messages)
    if length <= limit:
        return tuple(messages)
    full = length
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    offsets = {i: tokenise(tokenizer, messages[i]["content"]).offsets for i in users}
    shortened = [dict(message) for message in messages]
    for place in sorted(users, key=lambda i: -len(offsets[i])):
        removable = len(offsets[place]) - KEPT_TOKENS
        removed = 0
        while length > limit and removed < removable:
            removed = min(removed + length - limit, removable)
            content = messages[place]["content"]
            shortened[place]["content"] = cut_middle(content, offsets[place], removed)
            length = measure(shortened)
        if length <= limit:
            return tuple(shortened)
    raise DoesNotFitError(
        f"{full} tokens, and {length} even with its user messages cut to {KEPT_TOKENS} tokens; "
        f"{limit} are allowed",
        length,
    )


def cut_middle(content: str, offsets: Sequence[tuple[int, int]], removed: int) -> str:
    """Return the content without ``removed`` tokens in the middle, its head and tail joined.

    Characters are never split: one whose bytes are spread over several tokens goes or stays whole.
    """
    kept = len(offsets) - removed
    head = (kept + 1) // 2
    head_end = offsets[head - 1][1] if head else 0
    # From the end of the last removed token: token ranges may leave out a word's leading space.
    tail_start = offsets[head + removed - 1][1]
    return content[:head_end] + content[max(head_end, tail_start) :]
