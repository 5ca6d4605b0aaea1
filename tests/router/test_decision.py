"""Where a request goes at the edge of a threshold, and what counts as routed right."""

from __future__ import annotations

import numpy as np

from asr.router import Columns
from asr.router.decision import decide_scores
from asr.router.evaluation import evaluate
from asr.router.known import EVIDENCE_ALONE
from asr.router.scoring import Scores


def test_a_score_at_the_threshold_is_known() -> None:
    """The threshold is the score of a held-out prompt, which is itself not to be rejected."""
    scores = np.array([[0.5, 0.1], [np.nextafter(0.5, 0.0), 0.1], [0.75, 0.1]])
    given = Scores(scores, {"evidence": scores.max(axis=1)})
    batch = decide_scores(("a", "b"), given, EVIDENCE_ALONE, 0.5, 1.0)
    np.testing.assert_array_equal(batch.abstained, [False, True, False])
    assert [decision.route for decision in batch.decisions()] == ["a", "base", "a"]
    np.testing.assert_array_equal(batch.probability[[1]], [0.0])  # nothing to tell strangers from


def test_routed_right_means_that_no_other_domain_scores_higher() -> None:
    raw = {
        "a": {"bare": np.array([[0.9, 0.4], [0.3, 0.4], [0.2, 0.8], [0.6, 0.5]])},
        "b": {"bare": np.array([[0.9, 0.4], [-0.4, -0.3]])},
    }
    found = evaluate(raw, Columns(("a", "b"), (0, 1)))
    assert found.domain_accuracy == {"a": {"bare": 0.5}, "b": {"bare": 0.5}}
