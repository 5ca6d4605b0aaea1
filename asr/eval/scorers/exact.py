"""``exact``: the texts are equal once runs of white space count as one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from asr.eval.registry import register


@register
class ExactScorer:
    """1.0 where prediction and reference are equal up to white space, else 0.0; case counts."""

    name = "exact"
    needs: Literal["text"] = "text"
    higher_is_better = True

    def score(self, prediction: str, reference: str, meta: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0. White space is any Unicode white space; the ends are stripped."""
        return float(prediction.split() == reference.split())
