"""``rouge_l``: the longest common subsequence of words, as an F-measure.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), with beta = 1 as the package
``rouge-score`` has it, whose default tokens these are (lower-cased runs of letters and digits, no
stemming), only that letters and digits of all scripts count. On ASCII the two agree. The package
itself is not used: for this one score it would bring nltk and absl-py.

Left out on purpose: ROUGE-Lsum (sentence by sentence) and segmentation of scripts without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from asr.eval.registry import register
from asr.eval.scorers.references import ReferenceScorer

_TOKEN = re.compile(r"[^\W_]+")


def rouge_tokens(text: str) -> list[str]:
    """Return the lower-cased runs of letters and digits."""
    return _TOKEN.findall(text.lower())


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): one long integer
    per row of the table instead of len(a) cells, so that long answers cost little.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full  # a zero bit at i: the subsequence grows by one at a[i]
    for token in b:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def rouge_l(prediction: str, reference: str) -> float:
    """Return ``2 P R / (P + R)``, P and R being the LCS over the lengths; 0.0 without tokens."""
    given, wanted = rouge_tokens(prediction), rouge_tokens(reference)
    if not given or not wanted:
        return 0.0
    return 2 * lcs_length(given, wanted) / (len(given) + len(wanted))


@register
class RougeLScorer(ReferenceScorer):
    """ROUGE-L with the best of the references (the completion and ``meta.references``)."""

    name = "rouge_l"

    def compare(self, prediction: str, reference: str) -> float:
        """Return the F-measure, in [0, 1]."""
        return rouge_l(prediction, reference)
