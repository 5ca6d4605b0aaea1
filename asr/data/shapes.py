"""Which format a row shows by its keys, and under which names it keeps its parts.

A name that everybody uses is taken where it can mean one thing only: ``question`` and ``answer``
are a prompt and its completion, but a row with ``question`` and ``query`` is not guessed at, nor is
one with a ``context`` beside them. A lone ``text`` is a plain text; beside other columns
(``label``!) it is not, unless the user says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from asr.data.turns import quoted

FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "trace": ("prompt", "answer"),
    "text": ("text",),
}
"""Format name -> the keys that a row of it must have."""

PROMPTS = ("prompt", "question", "query", "input")
ANSWERS = ("completion", "answer", "response", "output")
"""Names of the two parts of a pair."""

KNOWN_KEYS = (
    *("messages", "conversations", "instruction", "context", "text", "system", "meta"),
    *(*PROMPTS, *ANSWERS),
)

_BESIDE_TEXT = frozenset({"text", "meta", "id"})


@dataclass(frozen=True)
class Shape:
    """A format, and the names that a file uses for its required keys, in the format's order."""

    format: str
    keys: tuple[str, ...]


class AmbiguousError(ValueError):
    """Keys of more than one format, or more than one name for a part; the message says which."""


def shown_shape(keys: Collection[str]) -> Shape | None:
    """Return what the keys of a row show, also where some required ones are missing.

    Raises:
        AmbiguousError: they show more than one thing.
    """
    shown: list[tuple[Shape, list[str]]] = []
    for name in ("messages", "sharegpt"):
        if FORMATS[name][0] in keys:
            shown.append((Shape(name, FORMATS[name]), [FORMATS[name][0]]))
    if "instruction" in keys:
        shown.append((_alpaca(keys), ["instruction"]))
    own = [key for key in ("prompt", "completion") if key in keys]
    if own and shown:
        shown.append((Shape("prompt-completion", FORMATS["prompt-completion"]), own))
    if len(shown) > 1:
        found = quoted(key for _, shown_keys in shown for key in shown_keys)
        formats = " or ".join(shape.format for shape, _ in shown)
        raise AmbiguousError(
            f"found {found} in one row, expected one format: remove the others, or say which with "
            f"format ({formats})"
        )
    if shown:
        return shown[0][0]
    pair = _pair(keys)
    if pair is not None:
        return pair
    return Shape("text", ("text",)) if "text" in keys and _BESIDE_TEXT.issuperset(keys) else None


def given_shape(name: str, keys: Collection[str]) -> Shape:
    """Return how a file whose rows have these keys keeps the named format."""
    if name == "alpaca":
        return _alpaca(keys)
    others = "instruction" in keys or {"prompt", "completion"} <= set(keys)
    if name == "prompt-completion" and not others:
        try:
            pair = _pair([key for key in keys if key != "context"])
        except AmbiguousError:
            pair = None
        return Shape(name, FORMATS[name] if pair is None else pair.keys)
    return Shape(name, FORMATS[name])


def alternatives() -> str:
    """Return every format's keys for a message."""
    *first, last = (" and ".join(f"'{key}'" for key in keys) for keys in FORMATS.values())
    return f"{'; '.join(first)}; or {last}"


def _alpaca(keys: Collection[str]) -> Shape:
    answer = "response" if "response" in keys and "output" not in keys else "output"
    return Shape("alpaca", ("instruction", answer))


def _pair(keys: Collection[str]) -> Shape | None:
    prompts, answers = _among(PROMPTS, keys), _among(ANSWERS, keys)
    if "prompt" in prompts and "completion" in answers:
        return Shape("prompt-completion", ("prompt", "completion"))
    if len(prompts) == 1 and len(answers) == 1:
        names = (prompts[0], answers[0])
        if "context" in keys and names[0] != "prompt":
            raise AmbiguousError(
                f"found 'context' beside {quoted(names)}, where it would be lost: put it into the "
                f"text of '{names[0]}', or leave it out by format: prompt-completion"
            )
        return Shape("trace" if names == FORMATS["trace"] else "prompt-completion", names)
    if prompts and answers:
        many, part = (prompts, "prompt") if len(prompts) > 1 else (answers, "completion")
        raise AmbiguousError(
            f"found {quoted([*prompts, *answers])}, expected one {part}: {quoted(many)} could each "
            f"be it; name the one that is meant '{part}'"
            + (f", and '{answers[0]}' 'completion'" if many is prompts else "")
        )
    if "prompt" in prompts or "completion" in answers:
        return Shape("prompt-completion", FORMATS["prompt-completion"])
    return None


def _among(names: Iterable[str], keys: Collection[str]) -> list[str]:
    return [name for name in names if name in keys]
