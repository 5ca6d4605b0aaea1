"""A matrix of any size, from made scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asr.eval.matrix import EvalMatrix, Scores

Maker = Callable[..., EvalMatrix]


@pytest.fixture
def make_matrix() -> Maker:
    """Return ``make(size, scorer="exact", names=None)``: every cell filled, 40 prompts each."""

    def make(size: int, scorer: str = "exact", names: list[str] | None = None) -> EvalMatrix:
        names = names or [f"domain-{i}" for i in range(size)]
        rng = np.random.default_rng(size)
        own = {name: (rng.random(40) < 0.6).astype(float) for name in names}
        cells = [(a, d) for k, a in enumerate(names) for d in names[: k + 1]]
        return EvalMatrix.from_scores(
            "bare",
            dict.fromkeys(names, scorer),
            routed={(a, d): Scores(own[d]) for a, d in cells},
            oracle={(a, d): Scores(own[d]) for a, d in cells},
            base={name: Scores(own[name] * 0.0) for name in names},
            routes={(a, d): [d] * 38 + [None, a] for a, d in cells},
        )

    return make
