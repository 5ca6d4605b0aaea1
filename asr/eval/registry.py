"""The scorer contract and the table of scorers by name.

A new scorer is one file in ``asr/eval/scorers/`` whose class carries ``@register``, and one line
in ``asr/eval/scorers/__init__.py`` that imports it. The registry knows nothing about any scorer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar

from asr.errors import ConfigError, unknown


class TextScorer(Protocol):
    """Scores a generated text against its reference.

    Attributes:
        name: what configs and the command line call it.
        needs: ``"text"``: the evaluator generates, then calls :meth:`score`.
        higher_is_better: direction of the score; metrics and figures orient themselves by it.
    """

    name: str
    needs: Literal["text"]
    higher_is_better: bool

    def score(self, prediction: str, reference: str, meta: Mapping[str, Any]) -> float:
        """Return the score of one example; ``meta`` is the example's own (tests, choices, ...)."""
        ...


class LossScorer(Protocol):
    """Scores an example from the likelihood of its reference; nothing is generated.

    Attributes:
        name: what configs and the command line call it.
        needs: ``"loss"``: the evaluator runs one forward pass, then calls :meth:`score_loss`.
        higher_is_better: direction of the score.
    """

    name: str
    needs: Literal["loss"]
    higher_is_better: bool

    def score_loss(self, sum_nll: float, tokens: int) -> float:
        """Return the score of one example from its summed NLL (nats) and its token count."""
        ...


Scorer = TextScorer | LossScorer
"""Either kind; ``scorer.needs`` tells which, and narrows the type."""

ScorerClass = TypeVar("ScorerClass", bound=type[TextScorer] | type[LossScorer])

_SCORERS: dict[str, Scorer] = {}


def register(cls: ScorerClass) -> ScorerClass:
    """Class decorator: make one instance of ``cls`` available as ``get_scorer(cls.name)``.

    Raises:
        ValueError: if another scorer already has that name.
    """
    scorer = cls()
    present = _SCORERS.get(scorer.name)
    if present is not None:
        raise ValueError(
            f"scorer '{scorer.name}' is registered twice: "
            f"{type(present).__module__}.{type(present).__qualname__} and "
            f"{cls.__module__}.{cls.__qualname__}"
        )
    _SCORERS[scorer.name] = scorer
    return cls


def get_scorer(name: str) -> Scorer:
    """Return the scorer called ``name``.

    Raises:
        ConfigError: if there is no such scorer; the message lists those there are.
    """
    if name not in _SCORERS:
        raise ConfigError(unknown("scorer", name, _SCORERS))
    return _SCORERS[name]


def scorer_names() -> list[str]:
    """Return the names of all scorers, sorted."""
    return sorted(_SCORERS)
