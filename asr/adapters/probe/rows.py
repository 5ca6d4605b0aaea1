"""The rows that a probe looks at: drawn at random from a domain's examples, encoded as in training.

Each seed draws its own rows; a row that several seeds draw is the same row, and is measured once.
Drawing depends on the seeds and on the number of examples, not on the other domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from asr.base.chat_template import ChatTemplate
from asr.data.encode import IGNORED, EncodedExample, encode_example, encode_examples
from asr.data.formats import Example
from asr.data.shorten import DoesNotFitError
from asr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Loss = Literal["answer", "full"]

LEAST = 2
"""Rows without which nothing can be said about noise."""


@dataclass(frozen=True)
class DrawnRows:
    """The rows of a domain.

    Attributes:
        name: the domain.
        source: file, or what else its examples came from.
        examples: how many it has.
        rows: the different rows that were drawn.
        draws: of each seed, its rows as places in ``rows``; one draw where all rows are taken.
        whole: the data has no more rows than a seed asks for: all are taken, and seeds agree.
        dropped: examples met that are longer than a row may be.
    """

    name: str
    source: str
    examples: int
    rows: tuple[EncodedExample, ...]
    draws: tuple[tuple[int, ...], ...]
    whole: bool
    dropped: int


def draw_rows(
    name: str,
    source: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    *,
    samples: int,
    seeds: int,
    seed: int = 0,
    max_length: int | None = None,
    loss: Loss = "answer",
) -> DrawnRows:
    """Draw ``samples`` rows for each seed. Only what is drawn is encoded.

    Args:
        name: the domain, for messages.
        source: where the examples come from, for messages.
        examples: at least one.
        tokenizer: the base's.
        template: the base's.
        samples: rows of a seed; fewer where there are not as many.
        seeds: how many draws.
        seed: the first of them; the others follow.
        max_length: tokens a row may have; longer prompts are cut as in training.
        loss: what is learned: the answers, or every token.

    Raises:
        DataError: no examples; one that cannot be encoded; none that fits; a row without a token
            to learn; fewer than two rows in all.
    """
    if not examples:
        raise DataError(f"{name}: there are no examples to probe with; give at least {LEAST}")
    encoded: dict[int, list[EncodedExample]] = {}
    places: dict[tuple[int, int], int] = {}
    rows: list[EncodedExample] = []
    draws: list[tuple[int, ...]] = []
    whole = False
    for number in range(seeds):
        draw: list[int] = []
        for index in _shuffled(len(examples), seed, number):
            if index not in encoded:
                encoded[index] = _encoded(examples[index], tokenizer, template, max_length, loss)
            for part, row in enumerate(encoded[index]):
                if (index, part) not in places:
                    places[index, part] = len(rows)
                    rows.append(row)
                draw.append(places[index, part])
            if len(draw) > samples:
                break
        draws.append(tuple(draw[:samples]))
        if len(draw) <= samples:
            whole = True
            break
    used = sorted({place for draw in draws for place in draw})
    if not used:  # too long, every one: said as training says it
        encode_examples(examples, tokenizer, template, max_length, name=name)
    if len(used) < LEAST:
        raise DataError(
            f"{name}: {source} has {len(used)} row to probe with; at least {LEAST} are needed to "
            "say how sure the result is"
        )
    moved = {place: new for new, place in enumerate(used)}
    return DrawnRows(
        name=name,
        source=source,
        examples=len(examples),
        rows=tuple(rows[place] for place in used),
        draws=tuple(tuple(moved[place] for place in draw) for draw in draws),
        whole=whole,
        dropped=sum(not parts for parts in encoded.values()),
    )


def _shuffled(count: int, seed: int, number: int) -> list[int]:
    # Philox of numpy: the same on every machine, unlike torch's generators
    source = np.random.Philox(np.random.SeedSequence([seed, number]))
    return [int(index) for index in np.random.Generator(source).permutation(count)]


def _encoded(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    max_length: int | None,
    loss: Loss,
) -> list[EncodedExample]:
    """Return the rows of an example; none where it does not fit."""
    try:
        rows = encode_example(example, tokenizer, template, max_length)
    except DoesNotFitError:
        return []
    for row in rows:
        learned = len(row.labels) - 1
        if loss == "answer":  # the first position is predicted from nothing
            learned = sum(label != IGNORED for label in row.labels[1:])
        if learned < 1:
            what = "answer token" if loss == "answer" else "token after the first"
            raise DataError(
                f"{row.source}: the row has no {what} to take a loss on; take it out of the data"
            )
    return rows
