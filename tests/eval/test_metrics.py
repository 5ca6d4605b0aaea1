"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asr.eval.metrics import (
    backward_transfer,
    confusion,
    overall_performance,
    routing_accuracy,
)

# After each of three domains; columns are the domains.
A: list[list[float | None]] = [[0.8, None, None], [0.9, 0.5, None], [0.6, 0.4, 0.7]]


def test_by_hand() -> None:
    # OP = (0.6 + 0.4 + 0.7) / 3; BWT = ((0.6 - 0.8) + (0.4 - 0.5)) / 2
    assert overall_performance(A) == pytest.approx(1.7 / 3)
    assert backward_transfer(A) == pytest.approx(-0.15)


def test_losses_turn_the_sign_of_differences_but_not_of_op() -> None:
    lower = [False] * 3
    assert overall_performance(A, lower) == pytest.approx(1.7 / 3)
    assert backward_transfer(A, lower) == pytest.approx(0.15)  # losses fell: improved
    # best before the last step: min(0.8, 0.9) = 0.8 and 0.5; F = ((0.6 - 0.8) + (0.4 - 0.5)) / 2


def test_mixed_directions_have_no_mean() -> None:
    mixed = [True, False, True]
    assert overall_performance(A, mixed) is None
    assert backward_transfer(A, mixed) is None


def test_one_domain_has_op_only() -> None:
    assert overall_performance([[0.3]]) == pytest.approx(0.3)
    assert backward_transfer([[0.3]]) is None


def test_missing_cells_give_none() -> None:
    only_last: list[list[float | None]] = [[None, None], [0.6, 0.7]]
    assert overall_performance(only_last) == pytest.approx(0.65)
    assert backward_transfer(only_last) is None
    assert overall_performance([[0.1, None], [0.2, None]]) is None


def test_no_change_is_plus_zero() -> None:
    for higher in (True, False):
        value = backward_transfer([[0.5, float("nan")], [0.5, 0.2]], [higher] * 2)
        assert value == 0.0
        assert math.copysign(1.0, value) == 1.0


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (3,)])
def test_shape_is_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="score matrix must be square"):
        overall_performance(np.zeros(shape))


def test_direction_length_is_checked() -> None:
    with pytest.raises(ValueError, match="higher_is_better has 2 entries, T is 3"):
        backward_transfer(A, [True, True])


def test_confusion_counts_abstentions_in_the_base_column() -> None:
    counts = confusion(["a", "a", "a", "b", "b"], ["a", "b", None, "b", "base"], ["a", "b"])
    assert counts.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert routing_accuracy(counts) == pytest.approx(2 / 5)
    assert routing_accuracy(np.zeros((2, 3))) is None


@pytest.mark.parametrize(
    ("true", "routed", "message"),
    [
        (["a"], [], "1 true domains but 0 routes"),
        (["c"], ["a"], "true domain 'c' is not one of: a, b"),
        (["a"], ["c"], "route 'c' is not one of: a, b, base"),
    ],
)
def test_confusion_refuses(true: list[str], routed: list[str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(true, routed, ["a", "b"])


def test_routing_accuracy_checks_its_shape() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(T, T \+ 1\), got \(2, 2\)"):
        routing_accuracy(np.eye(2))
