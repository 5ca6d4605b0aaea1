"""``choice``: the right choice is the likeliest answer per byte; nothing is generated.

For each of ``meta.choices`` the evaluator sums the log-likelihood of its tokens as the answer to
the prompt. Divided by the choice's length in UTF-8 bytes, the largest wins: the length
normalisation behind ``acc_norm`` of lm-evaluation-harness, which keeps long choices from losing for
their length alone. As there, the token that ends the answer is not counted, and of equal choices
the first wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from asr.data.problems import describe
from asr.eval.registry import register
from asr.eval.scorers.meta import bad_meta, texts

if TYPE_CHECKING:
    from asr.data.formats import Example

_SAMPLE = '["oil", "coal", "wood"], "gold": 1'


@register
class ChoiceScorer:
    """1.0 where the likeliest choice is the right one, else 0.0.

    The right one is ``meta.gold``: a place in the choices (from 0) or one of them; without it, the
    choice that equals the completion up to white space.
    """

    name = "choice"
    needs: Literal["choices"] = "choices"
    higher_is_better = True

    def requires(self, example: Example) -> None:
        """Refuse an example without choices, or whose right one cannot be told.

        Raises:
            DataError: the example's source, what was found and what is expected.
        """
        self.gold(example)

    def choices(self, example: Example) -> list[str]:
        """Return the answers to compare.

        Raises:
            DataError: ``meta.choices`` is not an array of two or more different strings.
        """
        found = texts(example, "choices", self.name, _SAMPLE, least=2)
        twice = next((text for place, text in enumerate(found) if text in found[:place]), None)
        if twice is not None:
            what = f"the choice {twice[:60]!r} twice in meta.choices"
            raise bad_meta(example, self.name, what, "different choices", "choices", _SAMPLE)
        return found

    def gold(self, example: Example) -> int:
        """Return the place of the right choice, from 0.

        Raises:
            DataError: as :meth:`choices`; or ``meta.gold`` is neither a place in them nor one of
                them; or there is none and the completion is no choice.
        """
        choices = self.choices(example)
        gold = example.meta.get("gold")
        if isinstance(gold, int) and not isinstance(gold, bool):
            if 0 <= gold < len(choices):
                return gold
            found = f"{gold} in meta.gold"
        elif isinstance(gold, str) or gold is None:
            right = example.completion if gold is None else gold
            place = _place(right, choices)
            if place is not None:
                return place
            where = "as the answer, which is none of meta.choices," if gold is None else ""
            found = f"{right[:60]!r} {where or 'in meta.gold'}"
        else:
            found = f"{describe(gold)} in meta.gold"
        expected = f"a place from 0 to {len(choices) - 1} or one of the choices in meta.gold"
        raise bad_meta(example, self.name, found, expected, "choices", _SAMPLE)

    def score_choices(self, sum_nll: Sequence[float], example: Example) -> float:
        """Return 1.0 or 0.0 from the summed NLL (nats) of each choice, in their order."""
        per_byte = [
            nll / len(choice.encode())
            for nll, choice in zip(sum_nll, self.choices(example), strict=True)
        ]
        return float(per_byte.index(min(per_byte)) == self.gold(example))


def _place(text: str, choices: Sequence[str]) -> int | None:
    if text in choices:
        return choices.index(text)
    return next((i for i, c in enumerate(choices) if c.split() == text.split()), None)
