"""``number``: the text's final number equals the reference's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from asr.errors import DataError
from asr.eval.registry import register

if TYPE_CHECKING:
    from asr.data.formats import Example

MARKER = "####"
"""What GSM8K writes before the answer (Cobbe et al., 2021, arXiv:2110.14168)."""

RELATIVE_TOLERANCE = 1e-6

# A sign counts only where it stands at the number, and is neither a minus between two ("7-5",
# "7 - 5", "2019-2020") nor a bullet ("- 5").
# Thousands separators are commas in groups of three; "1,2,3" is three numbers.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-+\u2212])?[$\u20ac\u00a3]?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?P<exponent>[eE][-+]?\d+(?!\w))?"
)


def last_number(text: str) -> float | None:
    """Return the last number in ``text``; None without one, or where it is beyond a float's range.

    Read: signs (also before a currency mark: ``-$5``), thousands commas, decimals, exponents.
    Left out on purpose: decimal commas, fractions and number words.
    """
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    found = matches[-1]
    value = float(found["digits"].replace(",", "") + (found["exponent"] or ""))
    if math.isinf(value):  # all such numbers would be equal
        return None
    negative = found["sign"] in ("-", "\u2212")
    return -value if negative else value


def _answer(text: str, marked: bool) -> float | None:
    """Return the last number, after the last marker where ``marked`` and the text has one."""
    if marked and MARKER in text:
        return last_number(text.rpartition(MARKER)[2])
    return last_number(text)


@register
class NumberScorer:
    """1.0 where the numbers agree to 1e-6 relative, else 0.0 (also where there is no number).

    Where the reference contains ``####``, the number after it is the reference's; a prediction
    that writes ``####`` is read the same way, and one that does not is read for its last number
    (the lenient reading: a right answer without the marker counts).
    """

    name = "number"
    needs: Literal["text"] = "text"
    higher_is_better = True

    def requires(self, example: Example) -> None:
        """Refuse an example whose answer holds no number.

        Raises:
            DataError: the example's source, and what was found.
        """
        try:
            self.score("", example.completion, example.meta)
        except DataError as error:
            raise DataError(f"{example.source}: {error}") from error

    def score(self, prediction: str, reference: str, meta: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0.

        Raises:
            DataError: if the reference holds no number (the scorer does not fit the data).
        """
        marked = MARKER in reference
        wanted = _answer(reference, marked)
        if wanted is None:
            raise DataError(
                f"scorer 'number' finds no number in the reference {reference[:60]!r}; "
                "choose another scorer (label, exact) for this domain"
            )
        given = _answer(prediction, marked)
        return float(given is not None and math.isclose(given, wanted, rel_tol=RELATIVE_TOLERANCE))
