"""``exact``: the texts are equal once runs of white space count as one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from asr.eval.registry import register
from asr.eval.scorers.meta import references_of, require_references

if TYPE_CHECKING:
    from asr.data.formats import Example


@register
class ExactScorer:
    """1.0 where the prediction equals a reference up to white space, else 0.0; case counts.

    References are the completion and, where there are any, ``meta.references``.
    """

    name = "exact"
    needs: Literal["text"] = "text"
    higher_is_better = True

    def requires(self, example: Example) -> None:
        """Refuse ``meta.references`` that are not texts.

        Raises:
            DataError: the example's source, what was found and what is expected.
        """
        require_references(example, self.name)

    def score(self, prediction: str, reference: str, meta: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0. White space is any Unicode white space; the ends are stripped."""
        return float(
            prediction.split() in [right.split() for right in references_of(reference, meta)]
        )
