"""Fixed cuts of a domain's data by the hash of the prompt.

A prompt's side depends on nothing but itself: ``sha256(salt + canonical prompt)``, read as a number
in [0, 1), is below the fraction or not. So equal prompts always land on one side, and a file may be
reordered or grow without moving anything. Two exceptions, both needed on small or large data and
both decided by the same hashes (hence independent of order too):

- with two or more distinct prompts, no side is left empty: the lowest hash is held out, or the
  highest kept (``Cut.forced``);
- a cap on the held-out prompts keeps the lowest hashes, so growth may return some to training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from asr.data.formats import Example, canonical_messages

DEV_FRACTION = 0.15
CALIBRATION_FRACTION = 0.20
CALIBRATION_PROMPTS = 256
BACKGROUND_FRACTION = 0.5

_DEV_SALT = "asr dev cut 1\n"
_CALIBRATION_SALT = "asr calibration cut 1\n"
_BACKGROUND_SALT = "asr background cut 1\n"


@dataclass(frozen=True)
class Cut:
    """Two sides of one list of examples, each in the list's order.

    Attributes:
        kept: examples to train on.
        held_out: examples to choose with.
        forced: whether one prompt was moved so that no side is empty.
    """

    kept: tuple[Example, ...]
    held_out: tuple[Example, ...]
    forced: bool = False


def prompt_position(example: Example, salt: str) -> float:
    """Return the prompt's place in [0, 1): the first 53 bits of ``sha256(salt + prompt)``."""
    digest = hashlib.sha256((salt + canonical_messages(example.prompt)).encode()).digest()
    # 53 bits are what a float holds exactly; all 64 could round up to 1.0
    return float(int.from_bytes(digest[:8], "big") >> 11) / float(1 << 53)


def hash_cut(
    examples: Sequence[Example], fraction: float, salt: str, max_prompts: int | None = None
) -> Cut:
    """Hold out about ``fraction`` of the prompts, see the module for the rule.

    Args:
        examples: any order.
        fraction: share of distinct prompts to hold out, in (0, 1).
        salt: makes cuts independent of each other.
        max_prompts: at most so many distinct prompts are held out.

    Returns:
        Both sides. With fewer than two distinct prompts everything is kept.

    Raises:
        ValueError: ``fraction`` or ``max_prompts`` out of range (checked by the config first).
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    if max_prompts is not None and max_prompts < 1:
        raise ValueError(f"max_prompts must be at least 1, not {max_prompts}")
    keys = [example.prompt_key for example in examples]
    by_key = dict(zip(keys, examples, strict=True))
    # The key breaks ties, so that the order never depends on the file's.
    ranked = sorted((prompt_position(example, salt), key) for key, example in by_key.items())
    count = sum(position < fraction for position, _ in ranked)
    wanted = count
    if len(ranked) >= 2:
        wanted = min(max(count, 1), len(ranked) - 1)
    elif ranked:
        wanted = 0
    forced = len(ranked) >= 2 and wanted != count
    if max_prompts is not None:
        wanted = min(wanted, max_prompts)
    held = {key for _, key in ranked[:wanted]}
    pairs = list(zip(keys, examples, strict=True))
    return Cut(
        kept=tuple(example for key, example in pairs if key not in held),
        held_out=tuple(example for key, example in pairs if key in held),
        forced=forced,
    )


def dev_cut(examples: Sequence[Example]) -> Cut:
    """Hold out the dev cut: 15% of the prompts, on which choices are made."""
    return hash_cut(examples, DEV_FRACTION, _DEV_SALT)


def calibration_cut(examples: Sequence[Example]) -> Cut:
    """Hold out the calibration prompts: 20%, at most 256. Apply it to what the dev cut kept."""
    return hash_cut(examples, CALIBRATION_FRACTION, _CALIBRATION_SALT, CALIBRATION_PROMPTS)


def background_cut(examples: Sequence[Example]) -> Cut:
    """Hold out half of the background's prompts: the world is wider than a domain."""
    return hash_cut(examples, BACKGROUND_FRACTION, _BACKGROUND_SALT)
