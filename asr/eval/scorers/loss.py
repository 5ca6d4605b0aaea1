"""``loss``: mean negative log likelihood per supervised token, in nats; lower is better."""

from __future__ import annotations

import math
from typing import Literal

from asr.eval.registry import register


@register
class MeanLossScorer:
    """Needs one forward pass and no generation: the cheap stand-in for any domain.

    Scores of several examples average to "per token" only when each is weighted by its number of
    tokens: pass those as ``Scores.weights`` (a plain mean would be per example).
    """

    name = "loss"
    needs: Literal["loss"] = "loss"
    higher_is_better = False

    def score_loss(self, sum_nll: float, tokens: int) -> float:
        """Return ``sum_nll / tokens``.

        Raises:
            ValueError: if ``tokens`` is not positive, or ``sum_nll`` is not finite.
        """
        if tokens <= 0:
            raise ValueError(f"loss needs at least 1 supervised token, got {tokens}")
        if not math.isfinite(sum_nll):
            raise ValueError(f"loss needs a finite sum of NLL, got {sum_nll}")
        return sum_nll / tokens
