"""``exact``: the texts are equal once runs of white space count as one space."""

from __future__ import annotations

from asr.eval.registry import register
from asr.eval.scorers.references import ReferenceScorer


@register
class ExactScorer(ReferenceScorer):
    """1.0 where the prediction equals a reference up to white space, else 0.0; case counts.

    References are the completion and, where there are any, ``meta.references``.
    """

    name = "exact"

    def compare(self, prediction: str, reference: str) -> float:
        """Return 1.0 or 0.0. White space is any Unicode white space; the ends are stripped."""
        return float(prediction.split() == reference.split())
