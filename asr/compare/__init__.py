"""Comparisons: what the same data and steps give without private adapters and a router."""

from asr.compare.forgetting import finding, forgotten
from asr.compare.sequential import SequentialLora, train_sequential
from asr.compare.sets import load_test_sets

__all__ = ["SequentialLora", "finding", "forgotten", "load_test_sets", "train_sequential"]
