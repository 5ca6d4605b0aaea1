"""The text of an answer whose tokens come one by one.

What is shown is final: the pieces of :class:`AnswerText` together are the decoded answer, without
the template's opening and cut at the first stop text, however its tokens were handed over. So what
a later token could still change is held back: half a character, a space that the tokenizer may
clean up, the beginning of a stop text.

Only the last few tokens are decoded again, never the whole answer: a token's text depends on those
before it, but not from further back than the last text that was complete. (This is how
text-generation-inference and vLLM decode a stream, with a prefix offset and a read offset.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from asr.base.chat_template import special_ids

_UNFINISHED = "\ufffd"  # what bytes decode to that are no character, or not yet
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

# What transformers' clean_up_tokenization replaces, in its order.
_CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


class AnswerText:
    """Decodes one answer piece by piece.

    Special tokens are left out, so a stop text that is a special token's never stops anything: such
    tokens end answers by their id. Of several stop texts the one that is complete first ends the
    answer, and of those complete with the same character the longest: nothing need be generated
    beyond a stop text to know that it is one.

    Args:
        tokenizer: a fast one.
        opening: text that the chat template writes before an answer; taken off its front if all of
            it is there. Stop texts are not looked for in it.
        stop: texts that end the answer; none is shown, nor anything behind it.

    Attributes:
        stopped: the stop text that ended the answer, None while none has.

    Raises:
        ValueError: a stop text is empty.
    """

    def __init__(self, tokenizer: Any, opening: str = "", stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ValueError("a stop text is empty")
        self.stopped: str | None = None
        self._tokens = _TokenText(tokenizer)
        self._cleaning = [_Replacing(*pair) for pair in _CLEANED if _cleans_up(tokenizer)]
        self._opening = opening
        self._front: str | None = ""  # what could still become the opening; None behind it
        self._stop = tuple(stop)
        self._held = ""  # could be the beginning of a stop text

    def push(self, token_ids: Iterable[int]) -> str:
        """Take new tokens and return the text that may be shown now, which is often empty.

        After a stop text nothing is taken any more.
        """
        if self.stopped is not None:
            return ""
        return self._shown(self._tokens.push(token_ids), last=False)

    def finish(self) -> str:
        """Return what was held back; the answer has no more tokens."""
        if self.stopped is not None:
            return ""
        return self._shown(self._tokens.finish(), last=True)

    def _shown(self, text: str, last: bool) -> str:
        for replacing in self._cleaning:
            text = replacing.push(text) + (replacing.finish() if last else "")
        text = self._behind_opening(text, last)
        text, self._held = self._held + text, ""
        ends = [
            (text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text
        ]
        if ends:
            end, length, self.stopped = min(ends)
            return text[: end + length]
        if not last:
            self._held = max((_beginning(text, stop) for stop in self._stop), key=len, default="")
        return text[: len(text) - len(self._held)]

    def _behind_opening(self, text: str, last: bool) -> str:
        if self._front is None:
            return text
        text = self._front + text
        if not last and len(text) < len(self._opening) and self._opening.startswith(text):
            self._front = text
            return ""
        self._front = None
        return text.removeprefix(self._opening)


class _TokenText:
    """Decodes tokens as they come; its pieces together are the decoded whole, not cleaned up."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # the tokens of the last piece, whose text is _shown_text
        self._shown_text = ""
        self._new: list[int] = []
        self._is_byte = False  # whether the last token is one byte of a character
        self._tried = 0  # tokens in _new when it was last decoded to no avail

    def push(self, token_ids: Iterable[int]) -> str:
        for token in token_ids:
            self._new.append(token)
            # SentencePiece's tokens of single bytes become text or not as a whole run, from which
            # special tokens, having no text, take nothing.
            name = self._tokenizer.convert_ids_to_tokens(token) or ""
            is_byte = _BYTE_TOKEN.fullmatch(name) is not None
            self._is_byte = is_byte or (self._is_byte and token in self._special)
        # Ever rarer while nothing comes of it, or a long run of bytes that are no text would take
        # time that grows with its square.
        if self._is_byte or len(self._new) <= self._tried + self._tried // 8:
            return ""
        text = self._decode(self._shown + self._new)
        is_whole = text.startswith(self._shown_text) and not text.endswith(_UNFINISHED)
        piece = text[len(self._shown_text) :] if is_whole else ""
        if not piece:
            self._tried = len(self._new)
            return ""
        self._shown, self._new, self._tried = self._new, [], 0
        self._shown_text = self._decode(self._shown)
        return piece

    def finish(self) -> str:
        piece = self._decode(self._shown + self._new)[len(self._shown_text) :]
        self._shown, self._shown_text, self._new = [], "", []
        return piece

    @cached_property
    def _special(self) -> frozenset[int]:
        return special_ids(self._tokenizer)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class _Replacing:
    """``str.replace`` on a text that comes in pieces."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def push(self, text: str) -> str:
        parts = (self._held + text).split(self._old)
        self._held = _beginning(parts[-1], self._old)
        parts[-1] = parts[-1][: len(parts[-1]) - len(self._held)]
        return self._new.join(parts)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _beginning(text: str, wanted: str) -> str:
    """Return the longest end of ``text`` that ``wanted`` begins with, but for all of it."""
    for length in range(min(len(text), len(wanted) - 1), 0, -1):
        if text.endswith(wanted[:length]):
            return wanted[:length]
    return ""


def _cleans_up(tokenizer: Any) -> bool:
    """Whether ``decode`` takes spaces before punctuation out: of BPE only where it is forced."""
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    return bool(
        tokenizer.clean_up_tokenization_spaces and (not is_bpe or getattr(tokenizer, forced))
    )
