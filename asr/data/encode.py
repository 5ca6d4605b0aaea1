"""From examples to token ids and label masks.

Every assistant message is supervised, up to and including the token that ends its turn, or the
model would never stop. What precedes an answer is tokenised exactly as inference tokenises that
prompt, and the answer apart from it: training sees the very tokens that generation continues.

A plain text is learned as a whole, without a template: every token, and at its end the token that
ends an answer. A longer one than a row may be goes on in the next row; nothing of it is lost.

One conversation is one row as long as that holds. Where a later prompt does not begin with the
tokens so far (templates such as Qwen3's write an earlier answer otherwise than the last one), a new
row starts, down to one row per assistant turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr.base.chat_template import ChatTemplate
from asr.data.formats import Example, Message
from asr.data.problems import listed
from asr.data.prompt import EncodedPrompt, encode_prompt
from asr.data.rendering import render_messages
from asr.data.shorten import DoesNotFitError, shorten_messages
from asr.data.tokens import Rendering, require_fast, tokenise_continuation, tokenise_opening
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "EncodedExample",
    "EncodedPrompt",
    "EncodedSet",
    "EncodingReport",
    "encode_example",
    "encode_examples",
    "encode_prompt",
]

IGNORED = -100
"""The label of unsupervised positions, as PyTorch's cross entropy ignores it."""


@dataclass(frozen=True)
class EncodedExample:
    """One row to train on.

    Notation: n tokens.

    Attributes:
        input_ids: (n,) token ids.
        labels: (n,) the same ids where supervised, else ``IGNORED``; not shifted.
        source: ``file.jsonl:12``.
        truncated: whether a user message was shortened.
    """

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool = False

    @property
    def supervised(self) -> int:
        """How many positions have a label."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class EncodingReport:
    """What became of a data set.

    Attributes:
        examples: examples given.
        rows: rows made of them (several for a conversation that needs it).
        truncated: examples whose user message was shortened.
        dropped: sources of the examples that could not be made to fit.
        supervised_tokens: positions with a label.
        total_tokens: all positions.
    """

    examples: int
    rows: int
    truncated: int
    dropped: tuple[str, ...]
    supervised_tokens: int
    total_tokens: int

    def __str__(self) -> str:
        """Return one line for the log; dropped sources are named, the first few of them."""
        text = (
            f"{self.examples} examples, {self.rows} rows, {self.total_tokens} tokens "
            f"({self.supervised_tokens} supervised), {self.truncated} shortened, "
            f"{len(self.dropped)} dropped"
        )
        if self.dropped:
            more = len(self.dropped) - 3
            text += f" ({', '.join(self.dropped[:3])}{f' and {more} more' if more > 0 else ''})"
        return text


@dataclass(frozen=True)
class EncodedSet:
    """Rows of a data set, in its order, and the report on them."""

    rows: tuple[EncodedExample, ...]
    report: EncodingReport


def encode_example(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    max_length: int | None = None,
) -> list[EncodedExample]:
    """Return the rows of one example: usually one, see the module.

    Args:
        example: a conversation that ends with an answer.
        tokenizer: the base's, a fast one.
        template: the base's.
        max_length: tokens a row may have. A longer example loses tokens from the middle of its
            longest user message, never from template text or an answer.

    Raises:
        DoesNotFitError: longer than ``max_length`` even so (a DataError).
        DataError: the tokenizer is not fast; the template refuses the turns, does not continue the
            prompt's rendering with the answer, or leaves the answer out; control tokens in a
            message cannot be told from the template's
            (:func:`asr.data.rendering.render_messages`). The example's source is named.
    """
    require_fast(tokenizer)
    if example.is_text:
        return _text_rows(example, tokenizer, template, max_length)

    def rows_of(messages: Sequence[Message]) -> list[EncodedExample]:
        return _rows(messages, example.source, tokenizer, template)

    try:
        rows = rows_of(example.messages)
        if max_length is None or max(len(row.input_ids) for row in rows) <= max_length:
            return rows
        shortened = shorten_messages(
            example.messages,
            tokenizer,
            max_length,
            lambda messages: max(len(row.input_ids) for row in rows_of(messages)),
        )
    except DoesNotFitError as error:
        message = f"{example.source}: the example has {error}; raise max_length"
        raise DoesNotFitError(message, error.needed) from error
    except DataError as error:
        raise DataError(f"{example.source}: {error}") from error
    return [
        EncodedExample(row.input_ids, row.labels, row.source, truncated=True)
        for row in rows_of(shortened)
    ]


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    max_length: int | None = None,
    *,
    name: str | None = None,
) -> EncodedSet:
    """Encode a data set; examples that cannot be made to fit are dropped and counted.

    Args:
        examples: at least one.
        tokenizer: the base's, a fast one.
        template: the base's.
        max_length: tokens a row may have, None for no limit.
        name: what messages call the data; by default the first example's file.

    Raises:
        DataError: no examples; examples that :func:`encode_example` refuses for another reason than
            length (all in one error); or nothing left to learn from because every example was
            dropped.
    """
    if not examples:
        raise DataError(f"{name or 'data'}: there are no examples to encode; give at least one")
    require_fast(tokenizer)
    name = name or examples[0].source.rpartition(":")[0] or "data"
    rows: list[EncodedExample] = []
    dropped: list[str] = []
    problems: list[str] = []
    truncated = 0
    shortest: int | None = None
    for example in examples:
        try:
            encoded = encode_example(example, tokenizer, template, max_length)
        except DoesNotFitError as error:
            dropped.append(example.source)
            shortest = error.needed if shortest is None else min(shortest, error.needed)
        except DataError as error:
            problems.append(str(error))
        else:
            rows.extend(encoded)
            truncated += encoded[0].truncated
    if problems:
        count = f"{len(problems)} of {len(examples)}"
        raise listed(f"{name}: {count} examples cannot be encoded; mend or remove", problems)
    supervised = sum(row.supervised for row in rows)
    if not supervised:
        noun = "the only example does not fit"
        if len(examples) > 1:
            noun = f"none of the {len(examples)} examples fits"
        raise DataError(
            f"{name}: all labels masked: {noun} into max_length {max_length} with the answer whole "
            f"(the shortest needs {shortest} tokens); raise max_length to at least {shortest}, or "
            "give shorter answers"
        )
    total = sum(len(row.input_ids) for row in rows)
    report = EncodingReport(len(examples), len(rows), truncated, tuple(dropped), supervised, total)
    return EncodedSet(tuple(rows), report)


def join_encoded(sets: Sequence[EncodedSet]) -> EncodedSet:
    """Return the rows of several views of the same examples, one view after the other.

    The report counts rows and tokens of all of them; examples once, and as shortened or dropped
    where any view was.

    Raises:
        ValueError: no sets.
    """
    if not sets:
        raise ValueError("no encoded sets to join")
    reports = [encoded.report for encoded in sets]
    rows = tuple(row for encoded in sets for row in encoded.rows)
    dropped = dict.fromkeys(source for report in reports for source in report.dropped)
    return EncodedSet(
        rows,
        EncodingReport(
            examples=reports[0].examples,
            rows=len(rows),
            truncated=max(report.truncated for report in reports),
            dropped=tuple(dropped),
            supervised_tokens=sum(report.supervised_tokens for report in reports),
            total_tokens=sum(report.total_tokens for report in reports),
        ),
    )


def _text_rows(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    max_length: int | None,
) -> list[EncodedExample]:
    """Return a plain text as rows of at most ``max_length`` tokens.

    A row begins with the last token of the one before it, so that every token but the very first
    is predicted once.
    """
    try:
        ids = tokenise_opening(tokenizer, template, example.completion).ids
    except DataError as error:
        raise DataError(f"{example.source}: {error}") from error
    ids = [*ids, template.end_of_turn_ids[0]]
    length = min(max_length or len(ids), len(ids))
    rows = [ids[begin : begin + length] for begin in range(0, len(ids) - 1, length - 1)]
    return [EncodedExample(row, [IGNORED, *row[1:]], example.source) for row in rows]


def _rows(
    messages: Sequence[Message],
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
) -> list[EncodedExample]:
    rows: list[EncodedExample] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        rendered = _rendered_prompt(messages[:place], tokenizer, template)
        answer = _answer(messages[: place + 1], rendered.text, tokenizer, template)
        prompt = tokenise_opening(tokenizer, template, rendered).ids
        seen = rows[-1].input_ids if rows else []
        continues = bool(rows) and prompt[: len(seen)] == seen
        labels = rows.pop().labels if continues else []
        labels = labels + [IGNORED] * (len(prompt) - len(labels)) + answer
        rows.append(EncodedExample(prompt + answer, labels, source))
    return rows


def _rendered_prompt(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
) -> Rendering:
    # A conversation may open with the assistant; then its prompt is the generation prompt alone,
    # which templates do not render from nothing.
    if not messages:
        raise DataError("the first message is the assistant's; begin with a user or system message")
    return render_messages(messages, tokenizer, template, add_generation_prompt=True)


def _answer(
    messages: Sequence[Message],
    prompt_text: str,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
) -> list[int]:
    """Return the token ids that the last message's turn is to generate, its end included."""
    ends = template.end_of_turn_ids
    rendering = render_messages(messages, tokenizer, template, add_generation_prompt=False)
    if not rendering.text.startswith(prompt_text):
        raise DataError(
            f"the chat template does not render message {len(messages)} (assistant) as a "
            "continuation of its prompt, so there is no telling what to learn; use another chat "
            "template"
        )
    ids = tokenise_continuation(tokenizer, rendering.behind(len(prompt_text)))
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    answer = ids if stop is None else ids[:stop]
    if not answer:
        raise DataError(
            f"the chat template renders nothing of message {len(messages)} (assistant); use "
            "another chat template"
        )
    return [*answer, ends[0] if stop is None else ids[stop]]
