from __future__ import annotations

import numpy as np

from asr.router import Columns
from asr.router.columns import BACKGROUND
from asr.router.decision import decide_scores
from asr.router.known import EVIDENCE_ALONE, KnownScore
from asr.router.scoring import Scores

RAW = np.array([[0.1, 0.9, 0.3, 0.2], [0.5, 0.4, 0.0, 0.8]])


def test_one_column_each() -> None:
    columns = Columns(("a", "b", "c", "d"), (0, 1, 2, 3))
    assert columns.domain_scores(RAW) is RAW
    np.testing.assert_array_equal(columns.background_scores(RAW), [0.0, 0.0])
    np.testing.assert_array_equal(columns.known_scores(RAW), [0.9, 0.8])


def test_prototypes_and_background() -> None:
    columns = Columns(("a", "b"), (0, 0, BACKGROUND, 1))
    np.testing.assert_array_equal(columns.domain_scores(RAW), [[0.9, 0.2], [0.5, 0.8]])
    np.testing.assert_array_equal(columns.background_scores(RAW), [0.3, 0.0])
    np.testing.assert_allclose(columns.known_scores(RAW), [0.6, 0.8])


def test_decisions_from_scores() -> None:
    scores = np.array([[0.2, 0.9], [0.4, 0.3], [0.5, 0.5]])
    evidence = scores.max(axis=1) - [0.0, 0.3, 0.0]
    known = KnownScore({"evidence": 1.0}, slope=4.0, intercept=-1.0)
    batch = decide_scores(("a", "b"), Scores(scores, {"evidence": evidence}), known, 0.2, 0.5)
    np.testing.assert_array_equal(batch.indices, [1, 0, 0])  # equal scores: first in name order
    np.testing.assert_array_equal(batch.abstained, [False, True, False])
    np.testing.assert_allclose(batch.score, [0.9, 0.1, 0.5])
    assert batch.margin is not None
    np.testing.assert_allclose(batch.margin, [0.7, 0.1, 0.0])
    shares = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum(axis=1, keepdims=True)
    is_known = 1 / (1 + np.exp(-(4 * evidence - 1)))
    np.testing.assert_allclose(
        batch.probability, np.where(batch.abstained, 1 - is_known, is_known * shares.max(axis=1))
    )
    assert batch.decision(0).terms == {"evidence": 0.9}
    first, second, _ = batch.decisions()
    assert (first.domain, first.route, first.abstained) == ("b", "b", False)
    assert (second.domain, second.route, second.abstained) == ("a", "base", True)
    assert second.scores == {"a": 0.4, "b": 0.3}
    assert second.threshold == 0.2


def test_no_rows() -> None:
    nothing = Scores(np.zeros((0, 2)), {"evidence": np.zeros(0)})
    batch = decide_scores(("a", "b"), nothing, EVIDENCE_ALONE, 0.0, 1.0)
    assert (len(batch), batch.decisions()) == (0, [])
