"""A routing report from decisions put together by hand, and its figure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asr.eval.routing.figures import routing_png
from asr.eval.routing.report import RoutingReport, routing_report
from asr.router import DecisionBatch


def batch(threshold: float = 0.5) -> DecisionBatch:
    """Six decisions over a and b: three known, one of them wrong and one lost; three strangers."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4], [0.9, 0.0], [0.3, 0.4]])
    score = np.array([0.9, 0.8, 0.7, 0.4, 0.6, 0.2])
    return DecisionBatch(
        names=("a", "b"),
        indices=scores.argmax(axis=1),
        abstained=score < threshold,
        score=score,
        margin=np.abs(scores[:, 0] - scores[:, 1]),
        probability=np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.9]),
        scores=scores,
        threshold=threshold,
    )


LABELS = ["a", "b", "b", "a", "none", "none"]


@pytest.fixture
def report() -> RoutingReport:
    return routing_report(batch(), LABELS, ["", "", "", "", "near", ""], [9, 9, 9, 9, 9, 9])


def test_shares(report: RoutingReport) -> None:
    assert report.forced["all"].share == pytest.approx(3 / 4)
    assert report.forced["b"].share == pytest.approx(1 / 2)
    assert report.routed["all"].share == pytest.approx(2 / 4)
    assert report.routed["a"].share == pytest.approx(1 / 2)
    assert (report.to_base["none"].share, report.to_base["none"].n) == (0.5, 2)
    assert report.to_base["near"].share == 0.0
    assert report.confusion == [[1, 0, 1], [1, 1, 0]]
    assert report.auroc == pytest.approx(7 / 8)
    assert report.matched == report.auroc
    assert report.threshold == 0.5
    share = report.forced["all"]
    assert share.low is not None and share.high is not None
    assert share.low < 0.75 < share.high


def test_probability_is_judged_with_both_halves_weighing_the_same(report: RoutingReport) -> None:
    right = np.array([1, 1, 0, 0, 0, 1])
    weights = np.array([1 / 8] * 4 + [1 / 4] * 2)
    probability = batch().probability
    assert report.brier == pytest.approx(np.sum(weights * (probability - right) ** 2))
    mean = np.sum(weights * right)
    assert report.constant_brier == pytest.approx(mean * (1 - mean))


def test_it_is_json_and_has_a_figure(report: RoutingReport) -> None:
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["domains"] == ["a", "b"]
    assert "score" not in record
    png = routing_png(report)
    assert png.startswith(b"\x89PNG")
    assert png == routing_png(report)


def test_without_strangers_and_without_a_threshold() -> None:
    never = batch(-np.inf)
    report = routing_report(never, ["a"] * 6, [""] * 6, [3] * 6)
    assert (report.auroc, report.matched, report.words, report.threshold) == (None,) * 4
    assert report.to_base["none"].n == 0
    assert json.dumps(report.to_dict(), allow_nan=False)
    assert routing_png(report).startswith(b"\x89PNG")
