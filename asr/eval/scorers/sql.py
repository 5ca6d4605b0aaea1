"""``sql``: the queries are the same text once their layout does not count.

Not equivalence: the order of columns and conditions, aliases and optional keywords count. What does
not count: case (also inside string literals: a question rarely says how a value is capitalised, and
WikiSQL's own evaluation lower-cases them; Zhong et al., 2017, arXiv:1709.00103), white space,
comments, a trailing semicolon, the style of quotes around identifiers (``"x"``, backquotes,
``[x]``, or none where the name is one word), and ``!=`` for ``<>``.
"""

from __future__ import annotations

import re

from asr.eval.registry import register
from asr.eval.scorers.fence import unfenced
from asr.eval.scorers.references import ReferenceScorer

# Quotes are doubled inside themselves. A quote that is not closed takes the rest of the text.
_TOKENS = re.compile(
    r"""
      (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<literal>'(?:[^']|'')*(?:'|\Z))
    | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]\[]*[^\W\d][^\]\[]*\])
    | (?P<open>["`].*\Z)
    | (?P<number>\d+(?:\.\d+)?(?:e[-+]?\d+)?)
    | (?P<word>[^\W\d]\w*)
    | (?P<operator><=|>=|<>|!=|\|\||::|->>|->|[^\s])
    """,
    re.VERBOSE | re.DOTALL,
)
_PLAIN = re.compile(r"[^\W\d]\w*")


def normalise_sql(text: str) -> str:
    """Return the query with its layout taken away, tokens apart by one space; idempotent."""
    tokens = [_token(found) for found in _TOKENS.finditer(text.casefold().strip())]
    tokens = [token for token in tokens if token]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return " ".join(tokens)


def _token(found: re.Match[str]) -> str:
    text = found.group()
    if found["comment"] is not None:
        return ""
    if found["literal"] is not None or found["open"] is not None:
        return _one_spaced(text)
    if found["quoted"] is not None:
        name = _one_spaced(text[1:-1].replace(text[0] * 2, text[0]))
        if _PLAIN.fullmatch(name):
            return name
        return '"' + name.replace('"', '""') + '"'
    return "<>" if text == "!=" else text


def _one_spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@register
class SqlScorer(ReferenceScorer):
    """1.0 where prediction and reference normalise to the same query, else 0.0.

    A query inside a Markdown fence is taken out of it. Further right queries may stand in
    ``meta.references``.
    """

    name = "sql"

    def compare(self, prediction: str, reference: str) -> float:
        """Return 1.0 or 0.0."""
        given, wanted = (
            normalise_sql(unfenced(text, ("sql", "sqlite", "mysql", "postgresql")))
            for text in (prediction, reference)
        )
        return float(given == wanted)
