"""Evaluation: scorers, the T x T matrix, its metrics, intervals, cache, figures and tables.

Never trains. ``asr.eval.figures`` (matplotlib) and ``asr.eval.tables`` (rich) are imported by
name when needed, so that scoring does not pay for drawing.
"""

from __future__ import annotations

from asr.eval import scorers as _scorers  # noqa: F401  registers the built-in scorers
from asr.eval.cache import EvalCache
from asr.eval.intervals import Interval, mean_interval, paired_interval
from asr.eval.matrix import EvalMatrix, Scores
from asr.eval.registry import LossScorer, Scorer, TextScorer, get_scorer, scorer_names

__all__ = [
    "EvalCache",
    "EvalMatrix",
    "Interval",
    "LossScorer",
    "Scorer",
    "Scores",
    "TextScorer",
    "get_scorer",
    "mean_interval",
    "paired_interval",
    "scorer_names",
]
