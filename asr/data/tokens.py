"""Tokenising rendered conversations: openings, and what continues them.

A rendering already holds its special tokens as text, so nothing is added, with one exception: where
the tokenizer would begin a text with its beginning-of-sequence token and the template does not
write it, it is put in front once. It is never doubled.

Special tokens that are a message's text, not the template's (a :class:`Rendering` says where they
stand), are written out: tokenised as the characters that they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asr.base.chat_template import ChatTemplate
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation.

    Attributes:
        text: what the chat template makes of the messages.
        literal: half-open character ranges, in order, in which a control token is text.
        control_ids: the token ids that are not to stand there.
    """

    text: str
    literal: tuple[tuple[int, int], ...] = ()
    control_ids: frozenset[int] = frozenset()

    def behind(self, length: int) -> Rendering:
        """Return what follows the first ``length`` characters."""
        ranges = ((max(a - length, 0), b - length) for a, b in self.literal if b > length)
        return Rendering(self.text[length:], tuple(ranges), self.control_ids)

    def preceded_by(self, text: str) -> Rendering:
        """Return the rendering with a text in front."""
        ranges = ((a + len(text), b + len(text)) for a, b in self.literal)
        return Rendering(text + self.text, tuple(ranges), self.control_ids)


@dataclass(frozen=True)
class Tokens:
    """Token ids with the characters they stand for.

    Notation: n tokens.

    Attributes:
        ids: (n,) token ids.
        offsets: (n,) half-open character ranges; (0, 0) for a token that was put in front, and the
            range of the whole for each token of a special one that is written out.
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


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str | Rendering) -> Tokens:
    """Tokenise a text as it stands, adding no special tokens and cutting nothing.

    Raises:
        DataError: the text holds a lone surrogate, which no tokenizer takes; or a special token
            that the tokenizer cannot write out.
    """
    rendering = Rendering(text) if isinstance(text, str) else text
    try:
        rendering.text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(rendering.text[error.start]):04x}"
        raise DataError(f"the text holds {half}, half of a character; send valid text") from error
    encoded = tokenizer(
        rendering.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    offsets = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    tokens = Tokens(list(encoded["input_ids"]), offsets)
    return _with_literals(tokenizer, rendering, tokens) if rendering.literal else tokens


def tokenise_opening(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, text: str | Rendering
) -> Tokens:
    """Tokenise a rendering from its start; see the module for the beginning-of-sequence token.

    Raises:
        DataError: as :func:`tokenise`.
    """
    tokens = tokenise(tokenizer, text)
    bos = tokenizer.bos_token_id
    if not template.adds_bos or tokens.ids[:1] == [bos]:
        return tokens
    return Tokens([int(bos), *tokens.ids], [(0, 0), *tokens.offsets])


def tokenise_continuation(tokenizer: PreTrainedTokenizerBase, text: str | Rendering) -> list[int]:
    """Tokenise text that follows other tokens.

    Some tokenizers put a space before whatever they are given (``add_prefix_space``, SentencePiece
    with its leading "▁"); in the middle of a conversation there is none. Those are given a line
    break first, whose tokens are taken off again.

    Raises:
        DataError: as :func:`tokenise`.
    """
    rendering = Rendering(text) if isinstance(text, str) else text
    ids = tokenise(tokenizer, rendering).ids
    line_break = tokenise(tokenizer, "\n").ids
    if tokenise(tokenizer, "\na").ids == line_break + tokenise(tokenizer, "a").ids:
        return ids
    behind = tokenise(tokenizer, rendering.preceded_by("\n")).ids
    cut = len(line_break)
    return behind[cut:] if behind[:cut] == line_break else ids


def _with_literals(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, tokens: Tokens
) -> Tokens:
    """Write out the control tokens within the literal ranges; all other tokens stay."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    place = 0
    for token, (begin, end) in zip(tokens.ids, tokens.offsets, strict=True):
        while place < len(rendering.literal) and rendering.literal[place][1] <= begin:
            place += 1
        is_literal = place < len(rendering.literal) and rendering.literal[place][0] < end
        written = [token]
        if is_literal and token in rendering.control_ids:
            written = _written_out(tokenizer, rendering.text[begin:end], rendering.control_ids)
        ids += written
        offsets += [(begin, end)] * len(written)
    return Tokens(ids, offsets)


def _written_out(
    tokenizer: PreTrainedTokenizerBase, text: str, control_ids: frozenset[int]
) -> list[int]:
    """Tokenise the text of a special token as ordinary text."""
    # What the vocabulary has no token for becomes the unknown token, which is special in name only.
    forbidden = control_ids - {tokenizer.unk_token_id}
    ids = _model_ids(tokenizer, text)
    if forbidden.intersection(ids):
        # Some vocabularies hold the whole text as a word, too; none holds it in single characters.
        ids = [token for character in text for token in _model_ids(tokenizer, character)]
    if forbidden.intersection(ids):
        raise DataError(
            f"a message contains '{text}', which the base's tokenizer cannot take for text; take "
            "it out"
        )
    return ids


def _model_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise the middle of a text as if no token had been added to the vocabulary.

    The backend's parts are called one by one, as transformers does where it sanitises chats:
    ``split_special_tokens`` is a switch on the tokenizer itself, which other threads use meanwhile,
    and does not cover tokens that were added without being special.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer")  # noqa: B009  # fast ones have it

    def ids_of(text: str) -> list[int]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    line_break, behind = ids_of("\n"), ids_of("\n" + text)  # see tokenise_continuation
    cut = len(line_break)
    return behind[cut:] if behind[:cut] == line_break and behind[cut:] else ids_of(text)
