"""From energies to modules and ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.adapters.dominant import DominantRequest, check_request, choose_dominant, paired_z
from asr.adapters.placement import LinearModule
from asr.errors import AdapterError

L = 2


def module(layer: int, kind: str = "up_proj", width: int = 8, out: int = 8) -> LinearModule:
    return LinearModule(f"layers.{layer}.{kind}", layer, width, out)


ENERGIES = {
    module(0, "up_proj"): 60.0,
    module(0, "down_proj", 24): 0.5,
    module(2, "up_proj"): 6.0,
    module(2, "down_proj", 24): 24.0,
    module(3, "up_proj"): 1.5,
    module(3, "down_proj", 24): 8.0,
}


def chosen(energies: dict[LinearModule, float] = ENERGIES, **asked: Any) -> Any:
    return choose_dominant(energies, DominantRequest(**asked), L)


def refused(energies: dict[LinearModule, float] = ENERGIES, **asked: Any) -> str:
    with pytest.raises(AdapterError) as error:
        chosen(energies, **asked)
    return str(error.value)


def test_the_best_from_the_router_layer_up() -> None:
    choice = chosen()
    assert choice.placement.names == ["layers.2.down_proj"]
    assert (choice.placement.kind, choice.placement.ranks, choice.placement.passes) == (
        "dominant",
        None,
        "one",
    )
    assert (choice.share, choice.margin) == (0.24, 3.0)
    assert (choice.weakest, choice.runner_up) == ("layers.2.down_proj", "layers.3.down_proj")
    assert (choice.unrestricted, choice.unrestricted_share) == ("layers.0.up_proj", 0.6)


def test_anywhere_takes_the_unrestricted_winner_in_two_passes() -> None:
    choice = chosen(anywhere=True)
    assert choice.placement.names == ["layers.0.up_proj"] == [choice.unrestricted]
    assert (choice.placement.passes, choice.share, choice.margin) == ("two", 0.6, 2.5)


def test_the_best_few_stand_in_layer_order_at_the_common_rank() -> None:
    choice = chosen(top=3)
    assert choice.placement.names == [
        "layers.2.up_proj",
        "layers.2.down_proj",
        "layers.3.down_proj",
    ]
    assert choice.placement.ranks is None
    assert choice.placement.parameters(2) == 2 * (16 + 32 + 32)
    assert (choice.weakest, choice.runner_up, choice.margin) == (
        "layers.2.up_proj",
        "layers.3.up_proj",
        4.0,
    )
    assert chosen(top=4).runner_up is None
    assert chosen(top=4).margin is None


def test_a_budget_is_spread_by_energy() -> None:
    # d'Hondt on 24, 8, 6, 1.5: 24 12 8 8 6 6 4.8 4 ...; 32 parameters a rank, 16 for up_proj
    assert ranks(budget=32) == {"layers.2.down_proj": 1}
    assert ranks(budget=63) == {"layers.2.down_proj": 1}
    assert ranks(budget=4 * 32) == {"layers.2.down_proj": 3, "layers.3.down_proj": 1}
    assert ranks(budget=5 * 32 + 16) == {
        "layers.2.up_proj": 1,
        "layers.2.down_proj": 4,
        "layers.3.down_proj": 1,
    }
    # the next rank, of a down_proj, costs 32: the 16 that are left go to the up_proj
    assert ranks(budget=5 * 32 + 32) == {
        "layers.2.up_proj": 2,
        "layers.2.down_proj": 4,
        "layers.3.down_proj": 1,
    }


def ranks(energies: dict[LinearModule, float] = ENERGIES, **asked: Any) -> dict[str, int]:
    placement = chosen(energies, **asked).placement
    assert placement.ranks is not None
    return dict(zip(placement.names, placement.ranks, strict=True))


def test_a_module_is_full_at_its_smaller_side() -> None:
    energies = {module(2): 1e6, module(3): 1.0}
    assert ranks(energies, budget=8 * 16) == {"layers.2.up_proj": 8}
    assert ranks(energies, budget=10 * 16) == {"layers.2.up_proj": 8, "layers.3.up_proj": 2}
    assert ranks(energies, budget=16 * 16) == {"layers.2.up_proj": 8, "layers.3.up_proj": 8}


def test_ties_go_by_the_order_of_the_model() -> None:
    energies = {module(3): 2.0, module(2): 2.0, module(1): 2.0}
    assert chosen(energies).placement.names == ["layers.3.up_proj"]
    assert ranks(energies, budget=3 * 16) == {"layers.3.up_proj": 2, "layers.2.up_proj": 1}


SIZES = st.integers(1, 12)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[LinearModule, float], DominantRequest]:
    energies = {}
    for layer in range(draw(st.integers(1, 6))):
        found = LinearModule(f"m.{layer}", layer, 2 * draw(SIZES), 2 * draw(SIZES))
        energies[found] = draw(st.floats(1e-3, 1e3))
    unit = draw(st.sampled_from([1, 2]))
    best = max(energies, key=lambda m: energies[m])
    least = best.lora_parameters(unit)
    most = sum(m.lora_parameters(min(m.in_features, m.out_features)) for m in energies)
    budget = draw(st.integers(least, most))
    return energies, DominantRequest(anywhere=True, budget=budget, unit=unit)


@given(problems())
def test_ranks_of_a_budget(problem: tuple[dict[LinearModule, float], DominantRequest]) -> None:
    energies, request = problem
    assert request.budget is not None
    placement = choose_dominant(energies, request, 0).placement
    assert placement.ranks is not None
    given = dict(zip(placement.modules, placement.ranks, strict=True))
    rest = request.budget - placement.parameters(99)
    assert rest >= 0
    strongest = max(energies.values())
    for m, rank in given.items():
        cap = min(m.in_features, m.out_features)
        assert 0 < rank <= cap and rank % request.unit == 0
        # no chosen module could take another rank
        assert rank == cap or m.lora_parameters(request.unit) > rest
    left = [energies[m] for m in energies if m not in given]
    assert strongest in {energies[m] for m in given}
    assert max(left, default=0.0) <= min(energies[m] for m in given)
    again = choose_dominant(energies, request, 0).placement
    assert again == placement


def one_by_one(energies: dict[LinearModule, float], request: DominantRequest) -> dict[str, int]:
    """The rule as it is told: seat after seat, and the rest to the strongest."""
    assert request.budget is not None
    unit, rest = request.unit, request.budget
    ranked = sorted(energies, key=lambda m: -energies[m])
    seats = dict.fromkeys(ranked, 0)

    def is_open(m: LinearModule) -> bool:
        return (seats[m] + 1) * unit <= min(m.in_features, m.out_features)

    while free := [m for m in ranked if is_open(m)]:
        following = min(free, key=lambda m: (seats[m] + 1) / energies[m])
        if following.lora_parameters(unit) > rest:
            break
        seats[following] += 1
        rest -= following.lora_parameters(unit)
    for m in [m for m in ranked if seats[m]]:
        while is_open(m) and m.lora_parameters(unit) <= rest:
            seats[m] += 1
            rest -= m.lora_parameters(unit)
    return {m.name: unit * number for m, number in seats.items() if number}


@given(problems())
def test_ranks_are_given_one_by_one(
    problem: tuple[dict[LinearModule, float], DominantRequest],
) -> None:
    energies, request = problem
    placement = choose_dominant(energies, request, 0).placement
    assert placement.ranks is not None
    found = dict(zip(placement.names, placement.ranks, strict=True))
    assert found == one_by_one(energies, request)


def test_messages() -> None:
    assert refused(top=5) == (
        "placement.dominant: top 5 is more than the 4 modules from layer 2 up; use 1 to 4"
    )
    assert refused(top=7, anywhere=True) == (
        "placement.dominant: top 7 is more than the 6 modules of all layers; use 1 to 6"
    )
    assert refused(budget=15) == (
        "placement.dominant: budget 15 is below rank 1 of the smallest module from layer 2 up; use "
        "16 to 768 parameters"
    )
    assert refused(budget=2000) == (
        "placement.dominant: budget 2,000 is more than full rank takes from layer 2 up; use 16 to "
        "768 parameters"
    )
    assert refused(budget=31) == (
        "placement.dominant: budget 31 is below rank 1 of the best module, 'layers.2.down_proj'; "
        "use 32 to 768 parameters"
    )
    assert refused(budget=63, unit=2) == (
        "placement.dominant: budget 63 is below rank 2 of the best module, 'layers.2.down_proj'; "
        "use 64 to 768 parameters"
    )
    assert refused({module(0): 1.0}) == (
        "placement 'dominant' finds no linear module from layer 2 up; lower router.layer, or set "
        "anywhere: true"
    )
    assert refused({module(2): 0.0, module(3): 0.0}) == (
        "placement.dominant: none of the 2 modules from layer 2 up receives a gradient; look at "
        "the training data"
    )
    assert refused({module(2): 0.0, module(3): 1.0}, top=2) == (
        "placement.dominant: top 2 is more than the 1 of 2 modules from layer 2 up that receive a "
        "gradient; use 1 to 1"
    )
    for bad in (math.nan, math.inf, -1.0):
        assert refused({module(2): bad}) == (
            f"placement.dominant: the energy of 'layers.2.up_proj' is {bad:g}"
        )


def test_what_no_ranking_could_answer_is_refused_without_one() -> None:
    check_request(list(ENERGIES), DominantRequest(top=4), L)
    with pytest.raises(AdapterError, match="use 1 to 4"):
        check_request(list(ENERGIES), DominantRequest(top=5), L)


def test_energies_beyond_the_range_of_numbers() -> None:
    assert refused(dict.fromkeys(ENERGIES, 1e308)) == (
        "placement.dominant: the sum of the energies leaves the range of numbers"
    )


def test_paired_differences() -> None:
    one, other = np.array([3.0, 5.0, 4.0]), np.array([2.0, 2.0, 2.0])
    assert paired_z(one, other) == pytest.approx(2 / (1 / math.sqrt(3)))
    assert paired_z(other, one) == -paired_z(one, other)  # type: ignore[operator]
    assert paired_z(one, one - 1) is None  # the same difference each time: no spread to divide by
    assert paired_z(one[:1], other[:1]) is None
