"""The framed views: a prompt's content as somebody might have typed it.

People greet, apologise, paste half of it, forget capitals and put things in another order. A router
that has only seen a data set's own prompts takes such a question for something else; one that was
also fitted on framed copies does not. Every choice follows from a hash of the content, so the same
prompt is framed alike everywhere and always.

Left out on purpose: typing errors and synonyms, which would need a dictionary per language. The
openings and endings are English; around another language they are noise, like any opening.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

OPENINGS = (
    "hi, ",
    "Hello! ",
    "hey there, ",
    "Good morning, ",
    "please ",
    "pls ",
    "quick question: ",
    "Quick one. ",
    "I have a question. ",
    "so ",
    "ok so ",
    "Okay, here it is: ",
    "umm ",
    "I was wondering, ",
    "Could you help me with this?\n",
    "Can you look at this for me? ",
    "can u tell me ",
    "Please help me with the following:\n",
    "Sorry to bother you, but ",
    "I'm a bit stuck here. ",
    "My colleague sent me this:\n",
    "For a friend: ",
    "Not sure if this is the right place. ",
    "What would you say to this?\n",
    "Tell me: ",
    "Here's what I have:\n\n",
    "I need this for tomorrow. ",
    "What do you make of this: ",
    "need help with this one: ",
    "Let's try this again. ",
    "One more: ",
    "Question - ",
)
"""What people write before the point; no topic of its own in any of them."""

ENDINGS = (
    " thanks",
    " Thanks!",
    " thx",
    " Thank you in advance.",
    " please",
    " Any idea?",
    " Can you help?",
    " What do you think?",
    " What is it?",
    "\n\nCheers",
    " I'm not sure.",
    " Hope that makes sense.",
    " (sorry for the typos)",
    "\nThat's all I know.",
    " ?",
    " ...",
    " Just a short answer please.",
    " Please be quick.",
)
"""What people write after it."""

_SALT = "asr framed view 1\n"


def frame(content: str, variant: int = 0) -> str:
    """Return the content cropped, reordered, lower-cased, put into a conversation, or all of it.

    Half of the contents of several lines get other lines first; half of those with at least 8 words
    lose up to half of their words at one end, or some of their lines; half are lower-cased; 7 of 10
    get an opening and 4 of 10 an ending.

    Args:
        content: a user message, without the part that is common to its domain.
        variant: another number makes other choices.
    """
    draw = draws(_SALT, content, variant)
    lines = [line for line in content.split("\n") if line.strip()]
    if len(lines) > 1 and next(draw) < 0.5:
        turn = 1 + int(next(draw) * (len(lines) - 1))
        lines = lines[turn:] + lines[:turn]
    if next(draw) < 0.5:
        lines = _crop(lines, next(draw), next(draw))
    text = "\n".join(lines)
    if next(draw) < 0.5:
        text = text.lower()
    if next(draw) < 0.7:
        text = pick(OPENINGS, next(draw)) + text
    if next(draw) < 0.4:
        text = text.rstrip() + pick(ENDINGS, next(draw))
    return text.strip() or content


def _crop(lines: list[str], where: float, share: float) -> list[str]:
    """Leave out whole lines where there are several, else words at one end."""
    if len(lines) > 1:
        keep = max(1, round(len(lines) * (0.5 + share / 2)))
        start = int(where * (len(lines) - keep + 1))
        return lines[start : start + keep]
    words = lines[0].split(" ") if lines else []
    if len(words) < 8:
        return lines
    keep = round(len(words) * (0.5 + share / 2))
    return [" ".join(words[:keep] if where < 0.5 else words[-keep:])]


def pick(choices: Sequence[str], draw: float) -> str:
    """Return the choice at a draw in [0, 1)."""
    return choices[int(draw * len(choices))]


def draws(salt: str, content: str, variant: int) -> Iterator[float]:
    """Yield numbers in [0, 1) that depend on the salt, the content and the variant alone."""
    block = 0
    while True:
        text = f"{salt}{variant} {block}\n{content}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        for start in range(0, 32, 4):
            yield int.from_bytes(digest[start : start + 4], "big") / 2**32
        block += 1
