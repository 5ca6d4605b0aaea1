"""The built-in scorers: importing this package registers each of them, one line per file."""

from __future__ import annotations

from asr.eval.scorers.choice import ChoiceScorer
from asr.eval.scorers.exact import ExactScorer
from asr.eval.scorers.f1 import TokenF1Scorer
from asr.eval.scorers.label import LabelScorer
from asr.eval.scorers.loss import MeanLossScorer
from asr.eval.scorers.number import NumberScorer
from asr.eval.scorers.python import PythonScorer
from asr.eval.scorers.rouge_l import RougeLScorer
from asr.eval.scorers.sql import SqlScorer

__all__ = [
    "ChoiceScorer",
    "ExactScorer",
    "LabelScorer",
    "MeanLossScorer",
    "NumberScorer",
    "PythonScorer",
    "RougeLScorer",
    "SqlScorer",
    "TokenF1Scorer",
]
