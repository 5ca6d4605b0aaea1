r"""Views of a prompt: as the domain's data has it, and bare.

A domain's prompts usually share an instruction ("Classify the intent of this message. ...\\n") that
real users do not type. A router fitted only on such *templated* prompts learns the instruction; so
it is fitted on several views of each prompt. :class:`CommonPart` is what the prompts share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from asr.data.formats import Example, Message
from asr.data.fragment import fragment
from asr.data.framing import frame
from asr.errors import DataError, unknown

SHARE_PERCENT = 95
"""A part is common when at least this share of the distinct prompts has it."""

MINIMUM_LENGTH = 8
"""Shorter common beginnings and endings are chance ("What is "), in characters without margins."""


@dataclass(frozen=True)
class CommonPart:
    """What (nearly) all prompts of a domain share.

    Attributes:
        prefix: beginning of the last user message, up to a line or word boundary.
        suffix: end of the last user message, from a line or word boundary.
        system: the system prompt, where it is the same everywhere.
    """

    prefix: str = ""
    suffix: str = ""
    system: str = ""

    def strip(self, content: str) -> str:
        """Return a user message without the common part and without outer white space.

        What is not there is not removed; a message that is nothing else than the common part stays.
        """
        rest = content.removeprefix(self.prefix).removesuffix(self.suffix).strip()
        return rest or content.strip()

    def bare(self, messages: Sequence[Message]) -> list[Message]:
        """Return copies of the turns: last user message stripped, common system prompt left out."""
        last = _last_user(messages)
        turns = [dict(message) for message in messages]
        if last is not None:
            turns[last]["content"] = self.strip(turns[last]["content"])
        if self.system and turns and turns[0] == {"role": "system", "content": self.system}:
            del turns[0]
        return turns

    def to_dict(self) -> dict[str, str]:
        """Return the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> CommonPart:
        """Read what :meth:`to_dict` wrote.

        Raises:
            DataError: an unknown key, or a value that is not a string.
        """
        names = [field.name for field in fields(cls)]
        for key, value in values.items():
            if key not in names:
                raise DataError(unknown("key of a common part", key, names))
            if not isinstance(value, str):
                raise DataError(f"common part: '{key}' is {value!r}; a string is expected")
        return cls(**{key: str(value) for key, value in values.items()})


def find_common_part(examples: Iterable[Example]) -> CommonPart:
    """Find what the prompts share, by a rule that a few odd rows cannot upset.

    Over distinct prompts: the longest beginning that at least 95% of the last user messages have
    (all of them where there are fewer than 20), cut back to the end of its last whole line, else to
    its last white space. It is dropped when it is shorter than 8 characters, or when more than 5%
    of the prompts would be left empty. Then the same for the ending of what remains. The system
    prompt is common when at least 95% of the prompts open with it. Fewer than two distinct prompts
    have nothing in common.
    """
    distinct = list({example.prompt_key: example.prompt for example in examples}.values())
    if len(distinct) < 2:
        return CommonPart()
    needed = -(-SHARE_PERCENT * len(distinct) // 100)  # rounded up, in integers
    openings = [p[0]["content"] for p in distinct if p[0]["role"] == "system"]
    contents = []
    for prompt in distinct:
        last = _last_user(prompt)
        contents.append("" if last is None else prompt[last]["content"])
    prefix = _keep(_line_end(_shared_prefix(contents, needed)), contents, needed)
    rests = [content.removeprefix(prefix) for content in contents]
    flipped = [rest[::-1] for rest in rests]
    suffix = _line_start(_shared_prefix(flipped, needed)[::-1])
    suffix = _keep(suffix[::-1], flipped, needed)[::-1]
    return CommonPart(prefix, suffix, _most_common(openings, needed))


def _last_user(messages: Sequence[Message]) -> int | None:
    places = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return places[-1] if places else None


def _shared_prefix(texts: Sequence[str], needed: int) -> str:
    """Return the longest beginning that at least ``needed`` texts share.

    Sorted, texts with a common beginning stand together: the answer is the longest common beginning
    of the two ends of a window of ``needed``.
    """
    ordered = sorted(texts)
    best = ""
    for first, last in zip(ordered, ordered[needed - 1 :], strict=False):
        # the window's ends differ first where any two of it do
        length = 0
        for left, right in zip(first, last, strict=False):
            if left != right:
                break
            length += 1
        if length > len(best):
            best = first[:length]
    return best


def _line_end(text: str) -> str:
    """Cut back to the end of the last whole line, else of the last word followed by a space."""
    if "\n" in text:
        return text[: text.rindex("\n") + 1]
    cut = max((index + 1 for index, char in enumerate(text) if char.isspace()), default=0)
    return text[:cut]


def _line_start(text: str) -> str:
    """Cut forward to the first line break, else to the first white space."""
    if "\n" in text:
        return text[text.index("\n") :]
    cut = next((index for index, char in enumerate(text) if char.isspace()), len(text))
    return text[cut:]


def _keep(part: str, texts: Sequence[str], needed: int) -> str:
    """Return ``part``, or nothing when it is too short or leaves too many texts empty."""
    if len(part.strip()) < MINIMUM_LENGTH:
        return ""
    filled = sum(bool(text.removeprefix(part).strip()) for text in texts)
    return part if filled >= needed else ""


def _most_common(texts: Sequence[str], needed: int) -> str:
    # More than half of the prompts have it, so there is one at most.
    for text, count in Counter(texts).most_common(1):
        if count >= needed:
            return text
    return ""


def _changed(
    messages: Sequence[Message], common: CommonPart, change: Callable[[str, int], str], variant: int
) -> list[Message]:
    """The bare view with its last user message changed."""
    turns = common.bare(messages)
    last = _last_user(turns)
    if last is not None:
        turns[last]["content"] = change(turns[last]["content"], variant)
    return turns


View = Callable[[Sequence[Message], CommonPart], list[Message]]
"""A view: turns and the domain's common part in, other turns out. Deterministic."""

VIEWS: dict[str, View] = {
    "templated": lambda messages, common: [dict(message) for message in messages],
    "bare": lambda messages, common: common.bare(messages),
    "framed": lambda messages, common: _changed(messages, common, frame, 0),
    "framed2": lambda messages, common: _changed(messages, common, frame, 1),
    "framed3": lambda messages, common: _changed(messages, common, frame, 2),
    "fragment": lambda messages, common: _changed(messages, common, fragment, 0),
    "fragment2": lambda messages, common: _changed(messages, common, fragment, 1),
}
"""View name -> view; one line registers another."""


def make_views(
    messages: Sequence[Message], common: CommonPart, names: Sequence[str]
) -> dict[str, list[Message]]:
    """Return the named views of one prompt, in the order of ``names``.

    Raises:
        DataError: a name that is no view.
    """
    for name in names:
        if name not in VIEWS:
            raise DataError(unknown("view", name, VIEWS))
    return {name: VIEWS[name](messages, common) for name in names}
