"""The chat template: the one renderer that training, routing and serving share.

A template is jinja source. Rendering goes through transformers' own
``tokenizer.apply_chat_template``, so what is trained on is what other engines render from the same
``chat_template.jinja``. Two things are ours:

- **The date is pinned.** A template that writes today's date (``strftime_now("%d %b %Y")``) would
  render another prompt tomorrow. Each such call is replaced by the literal date when the template
  is first made, and the replaced text is what is saved and hashed.
- **A plain built-in template** serves tokenizers that bring none (:data:`BUILTIN_BODY`). Its end
  of turn is the tokenizer's end-of-sequence token.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jinja2

from asr.errors import BaseModelError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILTIN_BODY = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- ('' if loop.first else '\\n\\n') + '### ' + (message['role'] | capitalize) + '\\n' -}}"
    "{{- message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\n\\n### Assistant\\n' -}}{%- endif -%}"
)
"""A heading per turn, a blank line between turns: ``### User``, content, ``### Assistant``, content
and end of sequence. ``{{- bos_token -}}`` is put in front where the tokenizer adds that token by
itself, because engines that render a chat do not."""

BUILTIN_BOS = "{{- bos_token -}}"

PROBE_QUESTION = "asr-probe-question"
PROBE_ANSWER = "asr-probe-answer"
_PROBE = (
    {"role": "user", "content": PROBE_QUESTION},
    {"role": "assistant", "content": PROBE_ANSWER},
)

_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")

_DATE_CALL = re.compile(
    r"""\bstrftime_now\(\s*(?:format\s*=\s*)?(?P<quote>["'])(?P<format>(?:\\.|(?!(?P=quote)).)*)"""
    r"""(?P=quote)\s*\)""",
    re.DOTALL,
)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template bound to its tokenizer; made by :meth:`from_tokenizer`.

    Attributes:
        text: jinja source, with its date pinned. Saved as ``chat_template.jinja``.
        is_builtin: whether ``text`` is our plain template.
        end_of_turn_ids: token ids that end an assistant's turn: the template's own first, then the
            tokenizer's end of sequence where it is another one. Never empty.
        adds_bos: whether the tokenizer puts a beginning-of-sequence token before plain text. Where
            the template does not write it, whoever tokenises a rendering adds it.
        answer_opening: what the template writes between a prompt and the answer's own text (empty
            reasoning tags, as Qwen3's does), as it is decoded from generated tokens; mostly empty.
    """

    text: str
    is_builtin: bool
    end_of_turn_ids: tuple[int, ...]
    adds_bos: bool
    _tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    answer_opening: str = ""

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        text: str | None = None,
        date: datetime.date | None = None,
    ) -> ChatTemplate:
        """Take ``text``, else the tokenizer's own template, else the built-in one.

        Args:
            tokenizer: the base's tokenizer.
            text: jinja source in place of the tokenizer's, as a saved ``chat_template.jinja`` is.
            date: what ``strftime_now`` calls become; today when None. A text that was saved from a
                ChatTemplate holds no such call, so it renders alike on every day.

        Raises:
            BaseModelError: the tokenizer has several templates and no default; the jinja source
                does not parse; a date is written with a format that is not a literal; the template
                refuses a plain question and answer, or leaves the answer out; there is no token
                that could end a turn.
        """
        source = _own_template(tokenizer) if text is None else text
        bos = adds_bos(tokenizer)
        builtin = builtin_text(bos)
        if source is None:
            if tokenizer.eos_token_id is None:
                raise BaseModelError(
                    "the tokenizer has neither a chat template nor an end-of-sequence token, so no "
                    "answer could ever end; set eos_token in its tokenizer_config.json, or use "
                    "another base"
                )
            source = builtin
        pinned = pin_date(source, date or datetime.date.today())
        unprobed = cls(pinned, pinned == builtin, (), bos, tokenizer)
        return replace(
            unprobed,
            end_of_turn_ids=_end_of_turn(unprobed, tokenizer),
            answer_opening=_answer_opening(unprobed, tokenizer),
        )

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the tokens that are control where the template writes them, else text.

        All special tokens; what ends a turn; and the tokens that were added to the vocabulary
        without being marked special and that the template writes (``<think>``, ``<tool_response>``,
        the turns' own marks in some fine-tunes), but for white space and plain words.
        """
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        nodes: Any = environment.parse(_GENERATION_TAG.sub("", self.text)).find_all(
            (jinja2.nodes.TemplateData, jinja2.nodes.Const)
        )
        literals = [getattr(node, "data", None) or getattr(node, "value", None) for node in nodes]
        # The rendering, too: "<|user|>" may be put together of pieces.
        written = [text for text in literals if isinstance(text, str)]
        written.append(self.render(_PROBE, add_generation_prompt=False))
        added = {
            token: one.content
            for token, one in self._tokenizer.added_tokens_decoder.items()
            if not one.content.isspace() and not one.content.strip().isalnum()
        }
        own = {token for token, text in added.items() if any(text in piece for piece in written)}
        return special_ids(self._tokenizer) | own | frozenset(self.end_of_turn_ids)

    @cached_property
    def turn_ids(self) -> frozenset[int]:
        """Those of ``control_ids`` that even an answer of the model's does not hold.

        An answer may hold the others: reasoning models write ``<think>`` themselves.
        """
        return special_ids(self._tokenizer) | frozenset(self.end_of_turn_ids)

    def may_hold_control(self, content: str) -> bool:
        """Whether it is worth looking for control tokens in a content; mostly it is not."""
        texts, is_normalised = self._control_texts
        return is_normalised or any(text in content for text in texts)

    @cached_property
    def _control_texts(self) -> tuple[tuple[str, ...], bool]:
        """Return the control tokens' texts, and whether other texts are normalised to one."""
        tokenizer: Any = self._tokenizer
        ids, added = sorted(self.control_ids), tokenizer.added_tokens_decoder
        normalises = tokenizer.is_fast and tokenizer.backend_tokenizer.normalizer is not None
        is_normalised = normalises and any(added[one].normalized for one in ids if one in added)
        return tuple(tokenizer.convert_ids_to_tokens(ids)), is_normalised

    @property
    def hash(self) -> str:
        """sha256 of ``text`` in UTF-8, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Return the conversation as text, ready to tokenise *without* adding special tokens.

        Args:
            messages: one mapping per turn with ``role`` and ``content``.
            add_generation_prompt: end with the header of a new assistant turn.

        Raises:
            DataError: no messages, or the template refuses them (its own reason is given).
        """
        if not messages:
            raise DataError("a conversation has no messages; give at least one user message")
        try:
            rendered: Any = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            # Templates refuse by raise_exception (a TemplateError), and trip over what they do not
            # expect with Python's own errors: either way it is the conversation that does not fit.
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = " ".join(str(error).split())
            raise DataError(
                f"the base's chat template refuses a conversation of the roles {roles}: {reason}; "
                "change the messages, or use another chat template"
            ) from error
        return str(rendered)


def builtin_text(bos: bool) -> str:
    """Return our plain template, for a tokenizer that adds a beginning of sequence or does not."""
    return (BUILTIN_BOS if bos else "") + BUILTIN_BODY


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts its beginning-of-sequence token before a plain text."""
    if tokenizer.bos_token_id is None:
        return False
    ids = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def pin_date(text: str, date: datetime.date) -> str:
    """Replace each ``strftime_now(<literal>)`` in a jinja source by the date, as a literal.

    ``strftime_now is defined`` stays: it is true in transformers and in the engines that follow it.

    Raises:
        BaseModelError: the source does not parse, or a call's format is not a literal string.
    """
    pinned = _DATE_CALL.sub(lambda match: json.dumps(date.strftime(match["format"])), text)
    if "strftime_now" not in pinned:
        return pinned
    # Only the names of the nodes matter here; "generation" is an extension that transformers adds.
    known_tags = _GENERATION_TAG.sub("", pinned)
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        calls = environment.parse(known_tags).find_all(jinja2.nodes.Call)
    except jinja2.TemplateSyntaxError as error:
        raise BaseModelError(f"the chat template is not valid jinja: {error}") from error
    if any(isinstance(c.node, jinja2.nodes.Name) and c.node.name == "strftime_now" for c in calls):
        raise BaseModelError(
            "the chat template writes the date in a computed format (strftime_now with something "
            "else than a literal string), so it cannot be pinned; give a template with the date "
            "written out"
        )
    return pinned


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, those of ``added_tokens_decoder`` included."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the tokenizer's default template, or None where it has none."""
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise BaseModelError(
            f"the tokenizer has several chat templates ({names}) and none called default; "
            "give the text of the one to use"
        ) from error


def _end_of_turn(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Find what ends an answer: render one, and read the first special token behind it.

    A token that was added to the vocabulary without being marked special counts where no special
    one follows (some ChatML fine-tunes add ``<|im_end|>`` that way).
    """
    try:
        text = template.render(_PROBE, add_generation_prompt=False)
    except DataError as error:
        reason = " ".join(str(error.__cause__).split())
        raise BaseModelError(
            f"the chat template fails on a plain question and answer: {reason}; "
            "give another template"
        ) from error
    _, found, tail = text.rpartition(PROBE_ANSWER)
    if not found:
        raise BaseModelError(
            "the chat template leaves the assistant's content out of what it renders; "
            "give another template"
        )
    tail_ids = list(tokenizer(tail, add_special_tokens=False)["input_ids"]) if tail else []
    special, added = special_ids(tokenizer), tokenizer.added_tokens_decoder
    own = [i for i in tail_ids if i in special] or [i for i in tail_ids if i in added]
    ids = own[:1]
    if tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
    if not ids:
        raise BaseModelError(
            "no token ends an assistant's turn: the chat template writes no special token after "
            "the answer and the tokenizer has no end-of-sequence token; set eos_token in its "
            "tokenizer_config.json"
        )
    return tuple(dict.fromkeys(ids))


def _answer_opening(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> str:
    """Find what an adapter learns to write before an answer because the template does."""
    prompt = template.render(_PROBE[:1], add_generation_prompt=True)
    turn, _, _ = template.render(_PROBE, add_generation_prompt=False).rpartition(PROBE_ANSWER)
    opening = turn.removeprefix(prompt) if turn.startswith(prompt) else ""
    ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
    decoded = str(tokenizer.decode(ids, skip_special_tokens=True))
    return decoded if decoded.strip() else ""  # a space before the answer is the tokenizer's matter
