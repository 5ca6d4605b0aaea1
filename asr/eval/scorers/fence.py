"""Code inside an answer: chat models wrap it in a Markdown fence, often with words around."""

from __future__ import annotations

import re
from collections.abc import Collection

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?P<language>[\w+-]*)[ \t]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)",
    re.MULTILINE | re.DOTALL,
)


def unfenced(text: str, languages: Collection[str]) -> str:
    """Return the code of the first fence in one of ``languages``, or in none; else ``text``.

    A fence that is not closed (the answer was cut by its length) reaches to the end.
    """
    for found in _FENCE.finditer(text.replace("\r\n", "\n")):
        if found["language"].lower() in ("", *languages):
            return found["code"]
    return text
