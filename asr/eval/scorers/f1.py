"""``f1``: how many words prediction and reference share, as SQuAD counts them.

F1 of the two bags of tokens after lower-casing and removing punctuation, articles and extra white
space: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016,
arXiv:1606.05250), and the official script of SQuAD 2.0 for answers without tokens.
"""

from __future__ import annotations

import re
import string
from collections import Counter

from asr.eval.registry import register
from asr.eval.scorers.references import ReferenceScorer

_PUNCTUATION = str.maketrans("", "", string.punctuation)  # removed, not replaced: "U.S." is "us"
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_tokens(text: str) -> list[str]:
    """Return the tokens of SQuAD's normalisation. English articles, ASCII punctuation."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(prediction: str, reference: str) -> float:
    """Return ``2 P R / (P + R)`` over the multisets of tokens, in [0, 1].

    Where one of the texts has no tokens (it was "the", or marks alone): 1.0 if neither has.
    """
    given, wanted = squad_tokens(prediction), squad_tokens(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


@register
class TokenF1Scorer(ReferenceScorer):
    """Token F1 with the best of the references (the completion and ``meta.references``)."""

    name = "f1"

    def compare(self, prediction: str, reference: str) -> float:
        """Return the F1, in [0, 1]."""
        return token_f1(prediction, reference)
