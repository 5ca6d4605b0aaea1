"""Canaries: a few fixed prompts whose features are embedded again whenever a model is loaded.

Another dtype, quantisation or device shifts features without changing what they mean. Whether the
shift matters depends on the router's margins, so that is what it is compared with. The prompts are
the project's own: nothing of the user's data is stored for this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.base.load import LoadedBase, Say
from asr.data.prompt import encode_prompt
from asr.errors import RouterError
from asr.model.contract import NumericContract, numeric_contract
from asr.model.directory import ModelDirectory
from asr.model.features import Forward, embed
from asr.model.manifest import Manifest
from asr.model.stored import read_router
from asr.router import Router

TENSOR = "canary_pooled"
"""Name of the stored features among the router's extra tensors, (n, d) float32."""

PROMPTS = (
    "What is the capital of France?",
    "Summarise the following paragraph in one sentence.",
    "def add(a, b):\n    return a + b",
    "My card was charged twice yesterday and I would like the money back.",
    "Solve: 12 * (7 - 4) = ?",
    "Translate 'good morning' into Spanish.",
    "The parties agree that this contract is governed by the laws of Norway.",
    "Which of these is a mammal: a trout, a bat, or a lizard?",
)


@dataclass(frozen=True)
class CanaryReport:
    """How far features moved since training.

    Attributes:
        relative_shift: largest relative change of a canary's feature vector.
        score_shift: largest change of any domain's score on a canary.
        typical_margin: median margin between best and second-best domain on the canaries, at
            training; None for a single domain.
        matters: the scores moved by more than a quarter of that margin.
    """

    relative_shift: float
    score_shift: float
    typical_margin: float | None
    matters: bool

    def warning(self, recorded: NumericContract, now: NumericContract) -> str:
        """One line for people: how far, what is another than at training, and what to do.

        Args:
            recorded: the training's arithmetic.
            now: this load's.
        """
        margin = self.typical_margin
        against = "" if margin is None else f" (typical margin {margin:.3f})"
        moved = (
            f"warning: features moved by {self.relative_shift:.1%} since training, scores by up to "
            f"{self.score_shift:.3f}{against}"
        )
        found = recorded.differences(now)
        if not found:
            return (
                f"{moved}; dtype, quantisation and device are those of training: use its versions "
                "of torch and transformers (asr info shows them) to get its decisions"
            )
        changes = ", ".join(
            f"{field} was {was} and is {here}" for field, (was, here) in found.items()
        )
        settings = " and ".join(f"{field}={was}" for field, (was, _) in found.items())
        return f"{moved}: {changes}; load with {settings} to get the training's decisions"


def canary_features(base: LoadedBase, forward: Forward) -> NDArray[np.float32]:
    """Embed the canaries with this base: (n, d) float32."""
    prompts = [encode_prompt(text, base.tokenizer, base.template) for text in PROMPTS]
    return embed(prompts, forward, base.tokenizer.pad_token_id, base.device)


def compare_canaries(
    stored: NDArray[np.float32], now: NDArray[np.float32], router: Router
) -> CanaryReport:
    """Compare the canaries' features at training and now, in units of the router's decisions.

    Args:
        stored: (n, d) features of the training run.
        now: (n, d) features of this process.
        router: the fitted router.
    """
    distance = np.linalg.norm(now.astype(np.float64) - stored, axis=1)
    relative = float((distance / np.linalg.norm(stored.astype(np.float64), axis=1)).max())
    before, after = router.scores(stored), router.scores(now)
    score_shift = float(np.abs(after - before).max())
    if before.shape[1] < 2:
        return CanaryReport(relative, score_shift, None, score_shift > 0.1)
    ordered = np.sort(before, axis=1)
    margin = float(np.median(ordered[:, -1] - ordered[:, -2]))
    return CanaryReport(relative, score_shift, margin, score_shift > margin / 4)


def settled_canaries(
    directory: ModelDirectory, manifest: Manifest, base: LoadedBase, forward: Forward, say: Say
) -> NDArray[np.float32]:
    """Return the canaries' features that a router of this directory is stored with: (n, d) float32.

    Those of the run that made the first domain: what the recorded arithmetic belongs to. A later
    run that adds to its statistics is compared with them like any other load. They are made now
    where there are none yet, or none that can be read.

    Args:
        directory: the model directory.
        manifest: its ledger.
        base: the loaded base, without active adapters.
        forward: its split forward.
        say: receives the warning about a shift that matters.
    """
    now = canary_features(base, forward)
    if not manifest.routed:
        return now
    try:
        stored = read_router(directory.current(directory.router, manifest), manifest.contract)
    except RouterError:  # it is about to be derived again
        return now
    first = stored.extra_tensors.get(TENSOR)
    if first is None or first.shape != now.shape:
        return now
    report = compare_canaries(first, now, stored.router)
    if report.matters:
        say(report.warning(manifest.numeric, numeric_contract(base)))
    return first
