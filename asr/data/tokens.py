"""Tokenising rendered conversations: openings, and what continues them.

A rendering already holds its special tokens as text, so nothing is added, with one exception: where
the tokenizer would begin a text with its beginning-of-sequence token and the template does not
write it, it is put in front once. It is never doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr.base.chat_template import ChatTemplate
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Token ids with the characters they stand for.

    Notation: n tokens.

    Attributes:
        ids: (n,) token ids.
        offsets: (n,) half-open character ranges; (0, 0) for a token that was put in front.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


def require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot say which characters a token stands for.

    Raises:
        DataError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"the base's tokenizer ({type(tokenizer).__name__}) is not a fast one and gives no "
            "character positions, which pooling and shortening need; use a base with a "
            "tokenizer.json"
        )


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """Tokenise a text as it stands, adding no special tokens and cutting nothing.

    Raises:
        DataError: the text holds a lone surrogate, which no tokenizer takes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"the text holds {half}, half of a character; send valid text") from error
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    return Tokens(list(encoded["input_ids"]), offsets)


def tokenise_opening(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, text: str
) -> Tokens:
    """Tokenise a rendering from its start; see the module for the beginning-of-sequence token."""
    tokens = tokenise(tokenizer, text)
    bos = tokenizer.bos_token_id
    if not template.adds_bos or tokens.ids[:1] == [bos]:
        return tokens
    return Tokens([int(bos), *tokens.ids], [(0, 0), *tokens.offsets])


def tokenise_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text that follows other tokens.

    Some tokenizers put a space before whatever they are given (``add_prefix_space``, SentencePiece
    with its leading "▁"); in the middle of a conversation there is none. Those are given a line
    break first, whose tokens are taken off again.
    """
    ids = tokenise(tokenizer, text).ids
    line_break = tokenise(tokenizer, "\n").ids
    if tokenise(tokenizer, "\na").ids == line_break + tokenise(tokenizer, "a").ids:
        return ids
    behind = tokenise(tokenizer, "\n" + text).ids
    cut = len(line_break)
    return behind[cut:] if behind[:cut] == line_break else ids
