"""What a sequence forgot, and the one sentence that says so; everything is computed from scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from asr.eval.matrix import EvalMatrix

Floats = npt.NDArray[np.float64]


def forgotten(matrix: EvalMatrix) -> Floats:
    """Return (T,) how much of each domain's score right after its training is gone at the end.

    ``a[j, j] - a[T, j]``, turned for scores where lower is better, so that positive always means
    worse. Negative: later domains helped. The last domain's is 0. NaN where a cell is missing.
    """
    a = matrix.routed  # (T, T)
    signs = np.where(matrix.higher_is_better, 1.0, -1.0)
    lost: Floats = signs * (np.diagonal(a) - a[-1]) if len(a) else np.zeros(0)
    return lost + 0.0  # never "-0.0"


def finding(ours: EvalMatrix, other: EvalMatrix) -> str:
    """Return what the comparison found, in one sentence.

    Args:
        ours: private adapters, routed.
        other: one LoRA trained through the same domains.

    Raises:
        ValueError: the two matrices are not over the same domains.
    """
    require_same_domains(ours, other)
    count = len(ours.domains)
    if count < 2:
        return "One domain so far: both are the same training, and nothing can be forgotten yet."
    ours_bwt, other_bwt = ours.bwt(), other.bwt()
    if ours_bwt is None or other_bwt is None:
        return "Scores of these domains do not average: compare them domain by domain."
    earlier = "the first domain" if count == 2 else f"the first {count - 1} domains"
    their_part, our_part = _course(other), _course(ours)
    # Half a point in a hundred is what rounding shows.
    if other_bwt < ours_bwt - 0.005:
        opening = "One LoRA forgets" if ours_bwt > -0.005 else "One LoRA forgets more"
    elif other_bwt > ours_bwt + 0.005:
        opening = "One LoRA forgot less than private adapters"
    else:
        opening = "One LoRA forgets no more than private adapters"
    return f"{opening}: on {earlier} it {their_part}; private adapters {our_part}."


def _course(matrix: EvalMatrix) -> str:
    """Say how the mean over all domains but the last went, from right after training to the end."""
    had = f"{np.diagonal(matrix.routed)[:-1].mean():.2f}"
    kept = f"{matrix.routed[-1, :-1].mean():.2f}"
    return f"kept {kept}" if had == kept else f"went from {had} to {kept}"


def require_same_domains(ours: EvalMatrix, other: EvalMatrix) -> None:
    """Refuse two matrices that do not compare.

    Raises:
        ValueError: other domains, another order, scorers or numbers of prompts; or none at all.
    """
    if not ours.domains:
        raise ValueError("no domain to compare")
    for what in ("domains", "scorers", "n"):
        mine, theirs = getattr(ours, what), getattr(other, what)
        if mine != theirs:
            raise ValueError(f"the two matrices differ in their {what}: {mine} and {theirs}")
