"""The fragment views: one sentence of a prompt's content, as it is typed in a hurry.

Prompts of a data set are long: a problem with its numbers, a passage with a question. What people
type is short, and its mean over a few tokens lies elsewhere than the mean over many. So a router is
also fitted on single sentences of its prompts, cut, lower-cased, with slips of the keyboard.
Held-out fragments are at the same time what comes nearest to people's own words in calibration: a
threshold that loses 5% of them lost 7% of people's questions on dev (docs/routing.md).

Every choice follows from a hash of the content, as in :mod:`asr.data.framing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from asr.data.framing import ENDINGS, OPENINGS, draws, pick

_SALT = "asr fragment view 1\n"
_SENTENCE_END = re.compile(r"(?<=[.?!。？！])\s+|\n+")
_SHORTEST, _RANGE = 6, 24
"""A fragment has at most 6 to 29 words; the shorter ones are more frequent."""

_SLIPS = 0.08
"""Share of the longer words that get a slip, in fragments that have any."""


def fragment(content: str, variant: int = 0) -> str:
    """Return a sentence of the content, or a part of it, as somebody might have typed it.

    Half of the time it is the last sentence, else any; of long ones 6 to 29 words are kept, mostly
    the first ones. Half are lower-cased, 4 of 10 lose their full stop, 3 of 10 have slips of the
    keyboard, 4 of 10 get an opening and 2 of 10 an ending.

    Args:
        content: a user message, without the part that is common to its domain.
        variant: another number makes other choices.
    """
    draw = draws(_SALT, content, variant)
    sentences = [part for part in _SENTENCE_END.split(content) if len(part.split()) >= 3]
    sentences = sentences or [content]
    last = next(draw) < 0.5
    place = int(next(draw) * len(sentences))
    words = sentences[-1 if last else place].split()
    keep = _SHORTEST + int(next(draw) ** 2 * _RANGE)
    middle, where = next(draw) >= 0.6, next(draw)
    if len(words) > keep:
        start = int(where * (len(words) - keep + 1)) if middle else 0
        words = words[start : start + keep]
    lower, bare, slips = next(draw) < 0.5, next(draw) < 0.4, next(draw) < 0.3
    opening, ending = next(draw) < 0.4, next(draw) < 0.2
    if slips:
        words = [_slip(word, draw) for word in words]
    text = " ".join(words)
    if lower:
        text = text.lower()
    if bare:
        text = text.rstrip(".?!")
    if opening:
        text = pick(OPENINGS, next(draw)) + text
    if ending:
        text += pick(ENDINGS, next(draw))
    return text.strip() or content


def _slip(word: str, draw: Iterator[float]) -> str:
    """Swap two letters, drop one or double one, in some of the words of more than three letters."""
    if len(word) <= 3 or next(draw) >= _SLIPS:
        return word
    place, kind = int(next(draw) * (len(word) - 1)), next(draw)
    if kind < 0.5:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind < 0.8:
        return word[:place] + word[place + 1 :]
    return word[:place] + word[place] + word[place:]
