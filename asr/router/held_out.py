"""What the held-out prompts say of a fitted scorer: thresholds, accuracy, what abstaining costs.

Notation: n prompts and V views of a block, K domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from asr.router.calibration import CalibrationBlock, conformal_threshold, view_thresholds
from asr.router.columns import BACKGROUND, Columns
from asr.router.evaluation import BlockScores, evaluate
from asr.router.known import EVIDENCE_ALONE, KnownScore
from asr.router.neighbours import LeftOut
from asr.router.numerics import Float64Array
from asr.router.scoring import Scorer, Scores

#: Shares of known prompts at which the abstain curve is drawn.
CURVE_LEVELS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)

#: From this share on, prompts of one domain that another one takes are reported; of fewer held-out
#: prompts than :data:`CONFUSED_PROMPTS` a share says little.
CONFUSED = 0.05
CONFUSED_PROMPTS = 10

BlockTerms = dict[str, dict[str, Scores]]
"""Scores by class and view kind, prompts in the order of the block."""


@dataclass(frozen=True)
class CurvePoint:
    """What abstaining at one level costs and brings, on held-out prompts.

    Attributes:
        abstain: the level: share of known prompts of the worst view kind that may be lost.
        threshold: the score it comes to.
        lost: share of known prompts below it, worst view kind.
        caught: share of held-out background prompts below it, all views; None without any.
    """

    abstain: float
    threshold: float
    lost: float
    caught: float | None


@dataclass(frozen=True)
class Confusion:
    """Held-out prompts of one domain that another one would take.

    Attributes:
        domain: whose prompts.
        taken_by: the other.
        share: of its held-out prompts, all views.
        prompts: how many prompts that share is of.
    """

    domain: str
    taken_by: str
    share: float
    prompts: int


@dataclass(frozen=True)
class HeldOut:
    """What was found; the fields are those of :class:`asr.router.report.RouterReport`."""

    accuracy: dict[str, float]
    domain_accuracy: dict[str, dict[str, float]]
    temperature: float
    thresholds: dict[str, float]
    threshold: float
    rejected: dict[str, float]
    background_rejected: dict[str, dict[str, float]]
    view_prompts: dict[str, int]
    curve: tuple[CurvePoint, ...]
    confusions: tuple[Confusion, ...]


def calibrate(
    scorer: Scorer,
    blocks: Mapping[str, CalibrationBlock],
    background: Mapping[str, CalibrationBlock],
    abstain: float,
    has_background: bool,
) -> tuple[KnownScore, HeldOut]:
    """Weigh the terms and set the threshold.

    Args:
        scorer: the fitted scorer.
        blocks: held-out prompts of the domains, by name; may be empty.
        background: the same of background classes.
        abstain: share of known prompts that may be lost.
        has_background: whether a background class has a column.
    """
    scored = _score(scorer, blocks)
    strangers = _score(scorer, background, BACKGROUND)
    known, everyone = _by_view(scored), _flat(strangers)
    score = EVIDENCE_ALONE
    if known:
        hardest = min(known, key=lambda view: (float(known[view]["evidence"].mean()), view))
        empty = {name: np.zeros(0) for name in known[hardest]}
        score = KnownScore.fit(known[hardest], everyone or empty)
    values = {view: score.score(terms) for view, terms in known.items()}
    thresholds = view_thresholds(values, abstain)
    threshold = min(thresholds.values(), default=-np.inf)
    plain = Columns(scorer.columns.names, tuple(range(len(scorer.columns.names))))
    domains: BlockScores = {
        name: {view: part.domains for view, part in views.items()} for name, views in scored.items()
    }
    found = evaluate(domains, plain) if domains else None
    return score, HeldOut(
        accuracy=found.accuracy if found else {},
        domain_accuracy=found.domain_accuracy if found else {},
        temperature=found.temperature if found else 1.0,
        thresholds=thresholds,
        threshold=threshold,
        rejected={view: float(np.mean(own < threshold)) for view, own in values.items()},
        background_rejected={
            name: {
                view: float(np.mean(score.score(part.terms) < threshold))
                for view, part in views.items()
            }
            for name, views in strangers.items()
        },
        view_prompts={view: len(own) for view, own in values.items()},
        curve=_curve(values, score.score(everyone) if everyone else None),
        confusions=_confusions(domains, plain.names),
    )


def _score(
    scorer: Scorer, blocks: Mapping[str, CalibrationBlock], owner: int | None = None
) -> BlockTerms:
    """Score the prompts of every block, without each prompt's own references."""
    scored: BlockTerms = {}
    first = 0  # references of several background classes lie one after another
    for name in sorted(blocks):
        block = blocks[name]
        n, views, _ = block.pooled.shape
        own = scorer.columns.names.index(name) if owner is None else owner
        prompts = np.repeat(np.arange(n) + (0 if owner is None else first), views)
        first += n
        scores = scorer(block.pooled.reshape(n * views, -1), LeftOut(own, prompts))
        scored[name] = {
            view: Scores(
                scores.domains[index::views],
                {term: values[index::views] for term, values in scores.terms.items()},
            )
            for index, view in enumerate(block.view_names)
        }
    return scored


def _by_view(scored: BlockTerms) -> dict[str, dict[str, Float64Array]]:
    """Terms per view kind of all blocks together, blocks in name order."""
    gathered: dict[str, dict[str, list[Float64Array]]] = {}
    for views in scored.values():
        for view, part in views.items():
            for term, values in part.terms.items():
                gathered.setdefault(view, {}).setdefault(term, []).append(values)
    return {
        view: {term: np.concatenate(parts) for term, parts in gathered[view].items()}
        for view in sorted(gathered)
    }


def _flat(scored: BlockTerms) -> dict[str, Float64Array]:
    """Terms of all blocks and views together."""
    parts = [part.terms for views in scored.values() for part in views.values()]
    return (
        {term: np.concatenate([part[term] for part in parts]) for term in parts[0]} if parts else {}
    )


def _curve(
    known: Mapping[str, Float64Array], strangers: Float64Array | None
) -> tuple[CurvePoint, ...]:
    points = []
    for level in CURVE_LEVELS:
        threshold = min(
            (conformal_threshold(own, level) for own in known.values()), default=-np.inf
        )
        if np.isfinite(threshold):
            lost = max(float(np.mean(own < threshold)) for own in known.values())
            caught = None if strangers is None else float(np.mean(strangers < threshold))
            points.append(CurvePoint(level, threshold, lost, caught))
    return tuple(points)


def _confusions(domains: BlockScores, names: tuple[str, ...]) -> tuple[Confusion, ...]:
    """Pairs of which one takes at least :data:`CONFUSED` of the other's prompts, worst first."""
    pairs = []
    for name, views in domains.items():
        routed = np.concatenate([scores.argmax(axis=1) for scores in views.values()])
        shares = np.bincount(routed, minlength=len(names)) / len(routed)
        prompts = len(next(iter(views.values())))
        pairs += [
            Confusion(name, other, float(share), prompts)
            for other, share in zip(names, shares, strict=True)
            if other != name and share >= CONFUSED and prompts >= CONFUSED_PROMPTS
        ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.share, pair.domain, pair.taken_by)))
