"""Scorers that compare an answer with each of its references and take the best.

References are the completion and, where there are any, further right answers in
``meta.references``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from asr.eval.scorers.meta import texts

if TYPE_CHECKING:
    from asr.data.formats import Example

KEY = "references"
"""Key of further right answers in an example's ``meta``."""

_SAMPLE = '["Paris", "the city of Paris"]'


class ReferenceScorer(ABC):
    """A text scorer that is known by how it compares two texts (:meth:`compare`)."""

    name: str
    needs: Literal["text"] = "text"
    higher_is_better = True

    @abstractmethod
    def compare(self, prediction: str, reference: str) -> float:
        """Return the score of a prediction against one right answer, in [0, 1]."""

    def requires(self, example: Example) -> None:
        """Refuse ``meta.references`` that are there and are no texts.

        Raises:
            DataError: the example's source, what was found and what is expected.
        """
        if example.meta.get(KEY) is not None:
            texts(example, KEY, self.name, _SAMPLE)

    def score(self, prediction: str, reference: str, meta: Mapping[str, Any]) -> float:
        """Return the best score over the completion and ``meta.references``."""
        rights = [reference, *(meta.get(KEY) or ())]
        return max(self.compare(prediction, right) for right in rights)
