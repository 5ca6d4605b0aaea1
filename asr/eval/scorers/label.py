"""``label``: the first line names the right class, however it is cased, quoted or punctuated."""

from __future__ import annotations

from asr.eval.registry import register
from asr.eval.scorers.references import ReferenceScorer

# Sentence marks, quotes and brackets only: '+', '#', '-', '_', '%' and '&' can tell labels apart
# ("c++" and "c#"), so they stay.
_SURROUNDING = " \t.,;:!?*\"'`()[]{}<>\u2018\u2019\u201c\u201d\u00ab\u00bb\u2026"


def normalise_label(text: str) -> str:
    """Return the first non-blank line, case-folded, spaces collapsed, surrounding marks removed.

    A label made of marks alone ("?") is kept as it is, so that it does not equal every other.
    """
    stripped = text.strip()
    first = " ".join(stripped.splitlines()[0].split()).casefold() if stripped else ""
    return first.strip(_SURROUNDING) or first


@register
class LabelScorer(ReferenceScorer):
    """1.0 where the prediction normalises to the same label as a reference, else 0.0.

    References are the completion and, where there are any, ``meta.references``.

    Left out on purpose: finding the label inside a sentence ("the answer is yes"). It would count
    "not yes" as right; a model trained on the domain answers with the label alone.
    """

    name = "label"

    def compare(self, prediction: str, reference: str) -> float:
        """Return 1.0 or 0.0."""
        return float(normalise_label(prediction) == normalise_label(reference))
