"""The T x T matrix: building, metrics, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from asr.errors import ConfigError, DirectoryError
from asr.eval.matrix import EvalMatrix, Scores

Maker = Callable[..., EvalMatrix]


def two() -> EvalMatrix:
    return EvalMatrix.from_scores(
        "templated",
        {"a": "exact", "b": "label"},
        routed={
            ("a", "a"): Scores([1, 1, 1, 0]),
            ("b", "a"): Scores([1, 1, 0, 0]),
            ("b", "b"): Scores([1, 0]),
        },
        oracle={("b", "a"): Scores([1, 1, 1, 0]), ("b", "b"): Scores([1, 0])},
        base={"a": Scores([0, 0, 0, 1]), "b": Scores([0, 0])},
        routes={
            ("a", "a"): ["a", "a", "a", "a"],
            ("b", "a"): ["a", "a", "b", None],
            ("b", "b"): ["b", "b"],
        },
    )


def test_means_metrics_and_routing_by_hand() -> None:
    m = two()
    assert m.routed[0, 0] == 0.75
    assert np.isnan(m.routed[0, 1])
    assert m.routed[1].tolist() == [0.5, 0.5]
    assert m.base.tolist() == [0.25, 0.0]
    assert m.n == [4, 2]
    assert m.op() == 0.5
    assert m.bwt() == -0.25
    assert m.op("oracle") == 0.625
    assert m.op("base") == 0.125
    assert m.bwt("oracle") is None  # no oracle on the diagonal
    assert m.routing_accuracy[1].tolist() == [0.5, 1.0]
    assert m.routing_accuracy[0, 0] == 1.0
    assert m.confusion.tolist() == [[2, 1, 1], [0, 2, 0]]
    routing = m.routing()
    assert routing is not None
    assert routing.mean == pytest.approx(4 / 6)
    assert routing.n == 6
    low, high = m.routed_interval[1, 0]
    assert low < 0.5 < high


def test_losses_are_weighted_by_tokens() -> None:
    m = EvalMatrix("bare")
    m.add_domain("a", "loss")
    m.record("a", "a", routed=Scores([1.0, 4.0], weights=[3, 1]))
    assert m.higher_is_better == [False]
    assert m.routed[0, 0] == 1.75
    assert m.op() == 1.75
    assert m.op("base") is None


def test_the_confusion_is_that_of_the_last_router() -> None:
    m = two()
    m.record("a", "a", routes=["a", "a", "a", None])  # an earlier row, measured again
    assert m.routing_accuracy[0, 0] == 0.75
    assert m.confusion.tolist() == [[2, 1, 1], [0, 2, 0]]


def test_growing_keeps_cells_and_empties_the_confusion() -> None:
    m = two()
    before = m.routed.copy()
    m.add_domain("c", "exact")
    np.testing.assert_array_equal(m.routed[:2, :2], before)
    assert np.isnan(m.routed[2]).all()
    assert m.confusion.shape == (3, 4)
    assert not m.confusion.any()
    assert m.routing() is None
    assert m.op() is None  # row "after c" is not measured yet


@pytest.mark.parametrize("size", [1, 2, 5])
def test_json_round_trip_is_exact_and_deterministic(make_matrix: Maker, size: int) -> None:
    text = make_matrix(size).to_json()
    assert text == make_matrix(size).to_json()
    assert EvalMatrix.from_json(text).to_json() == text
    record = json.loads(text)
    assert record["schema_version"] == 1
    assert list(record) == sorted(record)
    assert "NaN" not in text


def test_empty_matrix_round_trips() -> None:
    text = EvalMatrix("bare").to_json()
    again = EvalMatrix.from_json(text)
    assert again.to_json() == text
    assert again.op() is None
    assert again.bwt() is None
    again.add_domain("a", "exact")
    assert again.routed_interval.shape == (1, 1, 2)


def edited(**changes: object) -> str:
    return json.dumps(json.loads(two().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "eval/matrix.json is not JSON"),
        ("[]", "eval/matrix.json has schema version None, this ASR reads 1"),
        (edited(schema_version=2), "eval/matrix.json has schema version 2, this ASR reads 1"),
        (edited(base=[0.1]), r"damaged \(base has shape \(1,\), not \(2,\)\)"),
        (edited(n=[1]), "damaged .scorers, n and higher_is_better need one entry per domain"),
        (edited(surplus=1), "damaged"),
        (edited(kind="odd"), "damaged .kind must be one of templated, bare, got 'odd'"),
    ],
)
def test_foreign_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(DirectoryError, match=message):
        EvalMatrix.from_json(text, "eval/matrix.json")


def test_bad_records_are_refused_and_change_nothing() -> None:
    m = two()
    before = m.to_json()
    with pytest.raises(ValueError, match="'b' was trained after 'a': nothing to record"):
        m.record("a", "b", routed=Scores([1, 0]))
    with pytest.raises(ValueError, match="'a' was scored on different numbers of prompts: 3, 4"):
        m.record("b", "a", routed=Scores([1, 0, 1]))
    with pytest.raises(ValueError, match="no domain 'z' in the matrix of: a, b"):
        m.record("b", "z")
    with pytest.raises(ValueError, match="routes of 'a' name a domain trained after 'a'"):
        m.record("a", "a", routed=Scores([0, 0, 0, 0]), routes=["a", "b", "a", "a"])
    with pytest.raises(ValueError, match="routes of 'a' are empty"):
        m.record("b", "a", routes=[])
    with pytest.raises(ValueError, match="domain 'a' is in the matrix already, or reserved"):
        m.add_domain("a", "exact")
    with pytest.raises(ValueError, match="domain 'base' is in the matrix already, or reserved"):
        m.add_domain("base", "exact")
    with pytest.raises(ConfigError, match="unknown scorer 'exac'"):
        m.add_domain("c", "exac")
    assert m.to_json() == before


def test_scores_of_strangers_are_refused() -> None:
    with pytest.raises(ValueError, match="scores for unknown domains: z"):
        EvalMatrix.from_scores("bare", {"a": "exact"}, routed={("a", "z"): Scores([1])})
