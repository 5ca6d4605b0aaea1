"""The scorer contract and the table of scorers by name.

A new scorer is one file in ``asr/eval/scorers/`` whose class carries ``@register``, and one line
in ``asr/eval/scorers/__init__.py`` that imports it. The registry knows nothing about any scorer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from asr.data.problems import LISTED, listed
from asr.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from asr.data.formats import Example


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


class ChoiceScorer(Protocol):
    """Scores an example from the likelihoods of several answers; nothing is generated.

    Attributes:
        name: what configs and the command line call it.
        needs: ``"choices"``: the evaluator runs the answers of :meth:`choices` through the model,
            then calls :meth:`score_choices`.
        higher_is_better: direction of the score.
    """

    name: str
    needs: Literal["choices"]
    higher_is_better: bool

    def choices(self, example: Example) -> Sequence[str]:
        """Return the answers to compare, at least one."""
        ...

    def score_choices(self, sum_nll: Sequence[float], example: Example) -> float:
        """Return the score from the summed NLL (nats) of each answer, its end not counted."""
        ...


@runtime_checkable
class Requires(Protocol):
    """What a scorer of any kind has besides, if it cannot score every example."""

    def requires(self, example: Example) -> None:
        """Raise a DataError that names the example's source where it cannot be scored."""
        ...


Scorer = TextScorer | LossScorer | ChoiceScorer
"""Any kind; ``scorer.needs`` tells which, and narrows the type."""

ScorerClass = TypeVar("ScorerClass", bound=type[TextScorer] | type[LossScorer] | type[ChoiceScorer])

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


def check_examples(
    name: str, examples: Iterable[Example], domain: str, limit_errors: int = LISTED
) -> None:
    """Refuse examples that the scorer called ``name`` cannot score, before anything is trained.

    Args:
        name: of the scorer.
        examples: what it is to score.
        domain: whose examples these are, for the message.
        limit_errors: how many of them the error lists; all are counted.

    Raises:
        ConfigError: if there is no such scorer.
        DataError: one summary line, then one line per example that cannot be scored.
    """
    scorer = get_scorer(name)
    problems = []
    count = 0
    for example in examples:
        count += 1
        try:
            if example.is_text and scorer.needs != "loss":
                raise DataError(
                    f"{example.source}: scorer '{name}' found a plain text, expected a prompt and "
                    "an answer; a plain text can be scored by 'loss'"
                )
            if isinstance(scorer, Requires):
                scorer.requires(example)
        except DataError as error:
            problems.append(str(error))
    if not problems:
        return
    noun = "example" if count == 1 else "examples"
    summary = (
        f"{domain}: scorer '{name}' cannot score {len(problems)} of {count} {noun}; mend them, or "
        "choose another scorer"
    )
    raise listed(summary, problems, limit_errors)
