"""What there is to know about a data set before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr.base.chat_template import ChatTemplate
from asr.data.encode import IGNORED, EncodedExample, encode_example
from asr.data.formats import Example
from asr.data.problems import listed
from asr.data.shorten import DoesNotFitError
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Duplicates:
    """Prompts that stand more than once.

    Attributes:
        repeated: per prompt that stands more than once with one answer, the sources.
        contradictory: per prompt that stands with different answers, the sources.
    """

    repeated: tuple[tuple[str, ...], ...]
    contradictory: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a data set's examples, as they are before anything is cut.

    Attributes:
        minimum, median, percentile95, maximum: of an example's tokens; of a conversation that
            becomes several rows the longest one's. A plain text counts as a whole.
        total: all tokens of all rows.
        supervised: those of them that are learned.
        limit: tokens that a row may have.
        shortened: sources of examples whose longest user message is cut to fit.
        split: sources of plain texts that go on in another row.
        dropped: sources of examples that do not fit even so, and are left out.
    """

    minimum: int
    median: int
    percentile95: int
    maximum: int
    total: int
    supervised: int
    limit: int
    shortened: tuple[str, ...]
    split: tuple[str, ...]
    dropped: tuple[str, ...]


def find_duplicates(examples: Sequence[Example]) -> Duplicates:
    """Find equal prompts, in the order of the data."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt_key, []).append(example)
    several = [group for group in groups.values() if len(group) > 1]
    alike = [group for group in several if len({e.completion for e in group}) == 1]
    unlike = [group for group in several if len({e.completion for e in group}) > 1]
    return Duplicates(_sources(alike), _sources(unlike))


def _sources(groups: Sequence[Sequence[Example]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(example.source for example in group) for group in groups)


def shared_prompts(first: Sequence[Example], second: Sequence[Example]) -> list[tuple[str, str]]:
    """Return pairs of sources whose prompts differ by case and white space at most.

    One pair per prompt of ``second``; with the first example of ``first`` that has it.
    """
    known: dict[tuple[str, ...], str] = {}
    for example in first:
        known.setdefault(_loose(example), example.source)
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for example in second:
        key = _loose(example)
        if key in known:
            found.setdefault(key, (known[key], example.source))
    return list(found.values())


def _loose(example: Example) -> tuple[str, ...]:
    # A missing or another system prompt makes no other question.
    turns = [turn for turn in example.prompt if turn["role"] != "system"]
    return tuple(" ".join(turn["content"].split()).casefold() for turn in turns)


def measure_lengths(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    limit: int,
    name: str,
) -> Lengths:
    """Encode every example as training does, and measure.

    Args:
        examples: at least one.
        tokenizer: the base's, a fast one.
        template: the base's.
        limit: tokens that a row may have.
        name: what messages call the data.

    Raises:
        DataError: examples that cannot be encoded, all in one error.
    """
    lengths: list[int] = []
    total = supervised = 0
    shortened: list[str] = []
    split: list[str] = []
    dropped: list[str] = []
    problems: list[str] = []
    for example in examples:
        try:
            rows = encode_example(example, tokenizer, template)
            longest = max(len(row.input_ids) for row in rows)
            lengths.append(longest)
            if longest > limit:
                rows = encode_example(example, tokenizer, template, limit)
                (split if example.is_text else shortened).append(example.source)
        except DoesNotFitError:
            dropped.append(example.source)
            continue
        except DataError as error:
            problems.append(str(error))
            continue
        total += sum(len(row.input_ids) for row in rows)
        supervised += sum(row.supervised for row in rows)
    if problems:
        count = f"{len(problems)} of {len(examples)}"
        raise listed(f"{name}: {count} examples cannot be encoded; mend or remove", problems)
    ordered = sorted(lengths)
    return Lengths(
        minimum=ordered[0],
        median=ordered[len(ordered) // 2],
        percentile95=ordered[min(len(ordered) - 1, 95 * len(ordered) // 100)],
        maximum=ordered[-1],
        total=total,
        supervised=supervised,
        limit=limit,
        shortened=tuple(shortened),
        split=tuple(split),
        dropped=tuple(dropped),
    )


def mask_segments(
    row: EncodedExample, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, bool]]:
    """Return a row's text in pieces, each with whether it is learned."""
    pieces: list[tuple[list[int], bool]] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        learned = label != IGNORED
        if not pieces or pieces[-1][1] != learned:
            pieces.append(([], learned))
        pieces[-1][0].append(token)
    return [
        (
            str(
                tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            ),
            learned,
        )
        for ids, learned in pieces
    ]
