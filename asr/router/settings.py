"""The router's settings: which solver, ridge, expansion, abstaining and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from asr.errors import RouterError, unknown
from asr.router.features import DEFAULT_SEED
from asr.router.scoring import TERMS

SOLVERS = ("direct", "rls")

#: lambda of solver 'rls' where none is given. Recursive least squares needs it before the first
#: domain, so it cannot depend on data. Normalised features have squared norm d + 1, that is, mean
#: square 1 in each of the E = d + 1 coordinates: 1.0 weighs as much as one row spread evenly over
#: all directions, a relative ridge of 1 / (number of view rows).
DEFAULT_ABSOLUTE_RIDGE = 1.0

#: Share of known prompts that may be sent to the base, in the view kind nearest to people's words.
DEFAULT_ABSTAIN = 0.07

#: Neighbours whose similarity is averaged (5 to 20 differ by less than .015 in AUROC).
DEFAULT_NEIGHBOURS = 10

#: Beyond this a router rejects every other known prompt: a mistake, not a setting.
LARGEST_ABSTAIN = 0.5


@dataclass(frozen=True)
class RouterSettings:
    """How a router is fitted.

    Attributes:
        solver: ``"direct"`` (one solve over the summed statistics) or ``"rls"`` (recursive least
            squares: absolute ridge, unit weights).
        ridge: relative to trace(G) / E, for ``direct``; None chooses it on the calibration blocks.
        absolute_ridge: for ``rls``, in the units of the Gram of unit-weight rows; None is
            :data:`DEFAULT_ABSOLUTE_RIDGE`.
        expansion: E of the ReLU expansion, 0 for none.
        expansion_seed: its seed.
        abstain: the share of known prompts that may be rejected; 0 never abstains.
        domain_weights: factors on domains' statistics, for ``direct``; domains not named weigh 1.
            Factors proportional to 1 / prompts give every domain the same weight (AIR,
            arXiv 2408.10349).
        terms: what the known score is made of (:mod:`asr.router.scoring`); ``evidence`` first.
            ``typicality`` and ``closeness`` cost two (d, d) factors and the reference rows.
        neighbours: k of ``closeness``.
    """

    solver: str = "direct"
    ridge: float | None = None
    absolute_ridge: float | None = None
    expansion: int = 0
    expansion_seed: int = DEFAULT_SEED
    abstain: float = DEFAULT_ABSTAIN
    domain_weights: Mapping[str, float] | None = None
    terms: tuple[str, ...] = TERMS
    neighbours: int = DEFAULT_NEIGHBOURS

    def __post_init__(self) -> None:
        """Check every field and the combinations.

        Raises:
            RouterError: an unknown solver; a number of the wrong type or out of range; or a
                combination that a solver cannot follow, named.
        """
        if self.solver not in SOLVERS:
            raise RouterError(unknown("router solver", str(self.solver), SOLVERS))
        for name in ("ridge", "absolute_ridge"):
            value = getattr(self, name)
            if value is not None:
                _number(f"router.{name}", value)
                if value <= 0:
                    raise RouterError(
                        f"router.{name} is {value}; it must be above 0, or left out for the default"
                    )
        for name in ("expansion", "expansion_seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise RouterError(f"router.{name} is {value!r}; it must be an integer, 0 or more")
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int):
            raise RouterError(f"router.neighbours is {self.neighbours!r}; it must be an integer")
        if self.neighbours < 1:
            raise RouterError(
                f"router.neighbours is {self.neighbours}; it must be 1 or more (leave 'closeness'"
                " out of router.terms to do without)"
            )
        self._check_terms()
        _number("router.abstain", self.abstain)
        if not 0 <= self.abstain <= LARGEST_ABSTAIN:
            raise RouterError(
                f"router.abstain is {self.abstain}; it is a share of known prompts in 0 ... 0.5"
                " (0 never abstains, 0.07 is the default)"
            )
        if self.domain_weights is not None:
            for domain, weight in self.domain_weights.items():
                _number(f"router.domain_weights['{domain}']", weight)
                if weight <= 0:
                    raise RouterError(
                        f"router.domain_weights['{domain}'] is {weight}; it must be above 0 (to"
                        " leave a domain out, remove it)"
                    )
            ordered = {
                name: float(self.domain_weights[name]) for name in sorted(self.domain_weights)
            }
            object.__setattr__(self, "domain_weights", ordered)
        self._check_combination()

    def _check_terms(self) -> None:
        terms = tuple(self.terms)
        for term in terms:
            if term not in TERMS:
                raise RouterError(unknown("term in router.terms", str(term), TERMS))
        if terms not in (TERMS[:1], TERMS[:2], TERMS):
            raise RouterError(
                f"router.terms is [{', '.join(terms)}]; it is [evidence], [evidence, typicality]"
                " or [evidence, typicality, closeness]"
            )
        object.__setattr__(self, "terms", terms)

    def _check_combination(self) -> None:
        if self.solver == "direct" and self.absolute_ridge is not None:
            raise RouterError(
                "router.absolute_ridge belongs to solver 'rls'; for solver 'direct' set"
                " router.ridge, which is relative to trace/E"
            )
        if self.solver == "rls" and self.ridge is not None:
            raise RouterError(
                "solver 'rls' cannot follow router.ridge, which is relative and moves with every"
                " domain; set router.absolute_ridge, or router.solver: direct"
            )
        if self.solver == "rls" and self.domain_weights:
            raise RouterError(
                "solver 'rls' cannot follow router.domain_weights (unit weights only); leave them"
                " out, or set router.solver: direct"
            )

    @property
    def rls_ridge(self) -> float:
        """The absolute ridge of solver ``rls``."""
        return DEFAULT_ABSOLUTE_RIDGE if self.absolute_ridge is None else self.absolute_ridge

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict of every field."""
        return {**asdict(self), "terms": list(self.terms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RouterSettings:
        """Make settings from a dict; fields left out take their defaults.

        Raises:
            RouterError: an unknown field, or as the constructor.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise RouterError(unknown("router setting", str(name), names))
        weights = values.get("domain_weights")
        if weights is not None and not isinstance(weights, Mapping):
            raise RouterError(
                f"router.domain_weights is {weights!r}; it must map domain names to numbers"
            )
        return cls(**values)


def _number(name: str, value: object) -> None:
    """Check that a value is a finite real number.

    Raises:
        RouterError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RouterError(f"{name} is {value!r}; it must be a finite number")
