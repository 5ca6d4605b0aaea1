"""The built-in scorers: importing this package registers each of them, one line per file."""

from __future__ import annotations

from asr.eval.scorers.exact import ExactScorer
from asr.eval.scorers.label import LabelScorer
from asr.eval.scorers.loss import MeanLossScorer
from asr.eval.scorers.number import NumberScorer

__all__ = ["ExactScorer", "LabelScorer", "MeanLossScorer", "NumberScorer"]
