"""A base's tokenizer and chat template, without its weights.

Enough to encode data and to look at it; a few megabytes at most are read or downloaded.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.base.builtin import BUILTIN_BASES
from asr.base.chat_template import ChatTemplate
from asr.base.checkpoint import cached
from asr.base.resolve import resolve_base
from asr.errors import BaseModelError, first_line

Say = Callable[[str], None]


@dataclass(frozen=True)
class BaseTokenizer:
    """What of a base data is encoded with.

    Attributes:
        name: the base as the user named it.
        tokenizer: its tokenizer.
        template: its chat template, or the plain built-in one.
        context_length: longest sequence in tokens that the base was made for.
    """

    name: str
    tokenizer: Any
    template: ChatTemplate
    context_length: int


def load_base_tokenizer(
    name: str, *, trust_remote_code: bool = False, say: Say = lambda message: None
) -> BaseTokenizer:
    """Load the tokenizer of a base; of a hub id only the small files are downloaded.

    Raises:
        BaseModelError: the base cannot be found, or has no usable tokenizer or chat template.
    """
    from transformers import AutoConfig

    where = resolve_base(name, say, weights=False, code=trust_remote_code).path
    tokenizer = load_tokenizer(name, where, trust_remote_code)
    try:
        config: Any = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise_untrusted(name, error)
        raise BaseModelError(
            f"base '{name}' has no config that transformers can read ({first_line(error)})"
        ) from error
    template = make_template(tokenizer, say=say)
    length = context_length(config.get_text_config(decoder=True), tokenizer)
    return BaseTokenizer(name, tokenizer, template, length)


def builtin_at_hand() -> str | None:
    """Return the name of a built-in base that is in the cache, None where none is."""
    for name in BUILTIN_BASES:
        if any(cached(f"{name}-{origin}") for origin in ("hub", "wheel")):
            return name
    return None


def load_tokenizer(name: str, where: Path, trust_remote_code: bool) -> Any:
    """Load a tokenizer for left-padded batches.

    Args:
        name: the base as the user named it, for messages.
        where: its folder.
        trust_remote_code: run code that comes with it.

    Raises:
        BaseModelError: none that transformers can load, or one that has nothing to pad with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_untrusted(name, error)
        raise BaseModelError(
            f"base '{name}' has no tokenizer that transformers can load "
            f"({first_line(error)}); put its tokenizer files into {where}"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BaseModelError(
                f"the tokenizer of '{name}' has neither a padding nor an end-of-sequence "
                "token; set one in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def raise_untrusted(name: str, error: Exception) -> None:
    """Say what to do where transformers refuses a base because its own code is not trusted.

    Raises:
        BaseModelError: if that is what ``error`` says.
    """
    if "trust_remote_code" in str(error):
        raise BaseModelError(
            f"base '{name}' comes with code of its own, which is not run; read it, and where you "
            "trust it say --trust-remote-code (in Python: trust_remote_code=True)"
        ) from error


def make_template(
    tokenizer: Any,
    text: str | None = None,
    date: datetime.date | None = None,
    say: Say = lambda message: None,
) -> ChatTemplate:
    """Return the chat template to use; says so where the base has none of its own.

    Raises:
        BaseModelError: as :meth:`asr.base.chat_template.ChatTemplate.from_tokenizer`.
    """
    template = ChatTemplate.from_tokenizer(tokenizer, text=text, date=date)
    if template.is_builtin and text is None:
        say(
            "template: the base has no chat template; the plain built-in one is used (### User, "
            f"### Assistant, answers end with {tokenizer.eos_token}) and saved with the model"
        )
    return template


def context_length(text_config: Any, tokenizer: Any) -> int:
    """Return the longest sequence in tokens that a base was made for."""
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(text_config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return int(min(tokenizer.model_max_length, 1 << 20))
