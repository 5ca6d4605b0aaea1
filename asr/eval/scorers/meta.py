"""Reading what a scorer needs from an example's ``meta``, with errors that name the example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asr.data.problems import describe
from asr.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from asr.data.formats import Example


def texts(example: Example, key: str, scorer: str, sample: str, least: int = 1) -> list[str]:
    """Return the non-empty strings under ``key`` of an example's meta.

    Args:
        example: whose meta is read.
        key: of the meta.
        scorer: who asks, for the message.
        sample: a value that would do, as JSON, for the message.
        least: how many strings there must be.

    Raises:
        DataError: no such key, or something else under it.
    """
    value = required(example, key, scorer, sample)
    wanted = f"an array of at least {least} non-empty string{'s' if least > 1 else ''}"
    if not isinstance(value, list):
        raise bad_meta(example, scorer, f"{describe(value)} in meta.{key}", wanted, key, sample)
    for place, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            found = f"{describe(text)} in meta.{key}[{place}]"
            raise bad_meta(example, scorer, found, "a non-empty string", key, sample)
    if len(value) < least:
        found = f"{len(value)} string{'' if len(value) == 1 else 's'} in meta.{key}"
        raise bad_meta(example, scorer, found, wanted, key, sample)
    return list(value)


def required(example: Example, key: str, scorer: str, sample: str) -> Any:
    """Return what stands under ``key`` of an example's meta.

    Raises:
        DataError: nothing does; names the nearest key.
    """
    value = example.meta.get(key)
    if value is not None:
        return value
    others = [str(other) for other in example.meta if other != key]
    found = f"no '{key}' in meta" + (f" (it has: {', '.join(others)})" if others else "")
    near = next((hint for hint in (did_you_mean(o, [key]) for o in others) if hint), "")
    raise bad_meta(example, scorer, found + near, f"meta.{key}", key, sample)


def bad_meta(
    example: Example, scorer: str, found: str, expected: str, key: str, sample: str
) -> DataError:
    """Return the error for an example that a scorer cannot score."""
    return DataError(
        f"{example.source}: scorer '{scorer}' found {found}, expected {expected}; "
        f'write e.g. "meta": {{"{key}": {sample}}}'
    )
