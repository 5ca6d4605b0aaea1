"""DomLoRA: adapters on the modules that dominate a probe: one, several, or what a budget pays.

Takes energies (of :func:`asr.adapters.probe.page.page_energies`, or of a ``probe.json``) and says
where adapters go. Knows neither data nor models, nor how the energies came about.

Which modules:
    - by default the one of the largest energy, with the common rank;
    - ``top: k``: the ``k`` of the largest energies, the common rank each;
    - ``budget: P``: ranks proportional to the energies, at most ``P`` trainable parameters in all.

Candidates are the modules of layers >= ``L``, so that the domain stays one-pass; with ``anywhere``
those of all layers.

The ranks of a budget are a parliament's seats (d'Hondt): one after the other is given to the module
with the largest energy per rank that it would then have, up to ``min(in, out)``, beyond which rank
adds nothing, until the next one does not fit into the budget. What is left goes to the modules
chosen so far, the strongest first. A module that never gets a rank is left out. So the ranks are
``floor(t * energy)`` for the largest ``t`` that the budget pays, and no module chosen could take
another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.adapters.placement import LinearModule, Placement
from asr.errors import AdapterError


@dataclass(frozen=True)
class DominantRequest:
    """What is asked for.

    Attributes:
        anywhere: search all layers, not only those from the router layer up.
        top: take so many modules, the common rank each.
        budget: spread rank over the best modules, to at most so many trainable parameters.
        unit: ranks of a budget are multiples of this (2 where an initialisation needs even ranks).
    """

    anywhere: bool = False
    top: int | None = None
    budget: int | None = None
    unit: int = 1


@dataclass(frozen=True)
class DominantChoice:
    """What a ranking answers a request with.

    Attributes:
        placement: the chosen modules, with ranks of their own where a budget was given.
        share: their part of the energy of all modules, in [0, 1].
        runner_up: the strongest candidate that was not chosen; None if all were.
        weakest: the chosen module of the smallest energy.
        margin: energy of ``weakest`` over that of ``runner_up``; None without a runner-up, or where
            its energy is zero.
        unrestricted: name of the strongest module of all layers.
        unrestricted_share: its part of the energy of all modules.
    """

    placement: Placement
    share: float
    weakest: str
    runner_up: str | None
    margin: float | None
    unrestricted: str
    unrestricted_share: float


def check_request(
    modules: Sequence[LinearModule], request: DominantRequest, router_layer: int
) -> None:
    """Refuse what no ranking could answer, before anything is probed.

    Raises:
        AdapterError: no module from the router layer up; a ``top`` beyond the number of
            candidates; a ``budget`` below rank 1 of the cheapest or above the full rank of all.
    """
    candidates = _candidates(modules, request, router_layer)
    where = _where(request, router_layer)
    if request.top is not None and request.top > len(candidates):
        raise AdapterError(
            f"placement.dominant: top {request.top} is more than the {len(candidates)} modules "
            f"{where}; use 1 to {len(candidates)}"
        )
    if request.budget is not None:
        least = min(module.lora_parameters(request.unit) for module in candidates)
        most = sum(module.lora_parameters(_cap(module, request.unit)) for module in candidates)
        if not least <= request.budget <= most:
            problem = (
                f"is below rank {request.unit} of the smallest module"
                if request.budget < least
                else "is more than full rank takes"
            )
            raise AdapterError(
                f"placement.dominant: budget {request.budget:,} {problem} {where}; use {least:,} "
                f"to {most:,} parameters"
            )


def choose_dominant(
    energies: Mapping[LinearModule, float], request: DominantRequest, router_layer: int
) -> DominantChoice:
    """Return the modules, and for a budget the ranks, that a ranking answers a request with.

    Equal energies are told apart by the order of ``energies``, which must be that of the model.

    Args:
        energies: energy of every module of the base that was probed, >= 0.
        request: what is asked for.
        router_layer: the router layer ``L``.

    Raises:
        AdapterError: as :func:`check_request`; an energy that is not finite; no candidate that
            receives a gradient, or fewer than ``top``; a budget below rank 1 of the best module.
    """
    check_request(list(energies), request, router_layer)
    for module, energy in energies.items():
        if not math.isfinite(energy) or energy < 0:
            raise AdapterError(f"placement.dominant: the energy of '{module.name}' is {energy:g}")
    total = sum(energies.values())
    if total == math.inf:
        raise AdapterError(
            "placement.dominant: the sum of the energies leaves the range of numbers"
        )
    ranked = sorted(energies, key=lambda module: -energies[module])  # stable
    candidates = _candidates(ranked, request, router_layer)
    alive = [module for module in candidates if energies[module] > 0]
    wanted, where = request.top or 1, _where(request, router_layer)
    if not alive:
        raise AdapterError(
            f"placement.dominant: none of the {len(candidates)} modules {where} "
            "receives a gradient; look at the training data"
        )
    if len(alive) < wanted:
        raise AdapterError(
            f"placement.dominant: top {wanted} is more than the {len(alive)} of {len(candidates)} "
            f"modules {where} that receive a gradient; use 1 to {len(alive)}"
        )
    if request.budget is None:
        ranks = dict.fromkeys(alive[:wanted], 0)
    else:
        ranks = _spread(alive, [energies[module] for module in alive], request)
    chosen = [module for module in energies if module in ranks]  # in layer order
    weakest = min(chosen, key=lambda module: energies[module])
    left = [module for module in candidates if module not in ranks]
    runner_up = left[0] if left else None
    return DominantChoice(
        placement=Placement(
            "dominant",
            tuple(chosen),
            router_layer,
            None if request.budget is None else tuple(ranks[module] for module in chosen),
        ),
        share=math.fsum(energies[module] for module in chosen) / total,
        weakest=weakest.name,
        runner_up=None if runner_up is None else runner_up.name,
        margin=None
        if runner_up is None or energies[runner_up] == 0
        else energies[weakest] / energies[runner_up],
        unrestricted=ranked[0].name,
        unrestricted_share=energies[ranked[0]] / total,
    )


def paired_z(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Mean difference of paired energies in units of its standard error; None if that is zero.

    Args:
        first: (n,) energies of one module, a sample each.
        second: (n,) of another module, on the same samples.
    """
    difference = first - second
    if len(difference) < 2:
        return None
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(difference.mean()) / error if error > 0 else None


def _candidates(
    modules: Sequence[LinearModule], request: DominantRequest, router_layer: int
) -> list[LinearModule]:
    found = [m for m in modules if request.anywhere or m.layer >= router_layer]
    if not found:
        raise AdapterError(
            f"placement 'dominant' finds no linear module from layer {router_layer} up; "
            "lower router.layer, or set anywhere: true"
        )
    return found


def _where(request: DominantRequest, router_layer: int) -> str:
    return "of all layers" if request.anywhere else f"from layer {router_layer} up"


def _cap(module: LinearModule, unit: int) -> int:
    """Largest rank that adds something, as a multiple of ``unit`` and at least that."""
    return max(unit, min(module.in_features, module.out_features) // unit * unit)


def _spread(
    ranked: list[LinearModule], energies: list[float], request: DominantRequest
) -> dict[LinearModule, int]:
    """Ranks of the modules that get one; ``ranked`` by energy, the strongest first."""
    assert request.budget is not None
    unit = request.unit
    caps = [_cap(module, unit) // unit for module in ranked]
    costs = [module.lora_parameters(unit) for module in ranked]
    if costs[0] > request.budget:
        most = sum(cap * cost for cap, cost in zip(caps, costs, strict=True))
        raise AdapterError(
            f"placement.dominant: budget {request.budget:,} is below rank {unit} of the best "
            f"module, '{ranked[0].name}'; use {costs[0]:,} to {most:,} parameters"
        )
    # the k-th rank of module m comes at t = k / energy; in the order of t, then of strength
    owners = np.repeat(np.arange(len(ranked)), caps)
    counts = np.concatenate([np.arange(1, cap + 1) for cap in caps])
    turn = np.lexsort((owners, counts / np.asarray(energies)[owners]))
    spent = np.cumsum(np.asarray(costs, dtype=np.int64)[owners[turn]])
    given = int(np.searchsorted(spent, request.budget, side="right"))
    ranks = np.bincount(owners[turn[:given]], minlength=len(ranked))
    rest = request.budget - (int(spent[given - 1]) if given else 0)
    for m in np.flatnonzero(ranks):
        more = min(rest // costs[m], caps[m] - int(ranks[m]))
        ranks[m] += more
        rest -= more * costs[m]
    return {ranked[m]: int(ranks[m]) * unit for m in np.flatnonzero(ranks)}
