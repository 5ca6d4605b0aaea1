"""What a fit found out about itself: ridge, accuracy, thresholds and what to watch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asr.router.calibration import prompts_needed
from asr.router.held_out import Confusion, CurvePoint, HeldOut
from asr.router.ridge import RIDGE_GRID, RidgeRow

#: Below this share of caught strangers a threshold is as good as none.
HARDLY = 0.05


@dataclass(frozen=True)
class RouterReport:
    """The record of one fit. Shares are on the calibration prompts.

    Ridge, temperature and thresholds are all set on the same calibration prompts, so accuracy here
    is slightly better than on new prompts; report a test set's.

    Attributes:
        solver: ``"direct"`` or ``"rls"``.
        ridge: relative to trace(G) / E (for ``rls``: what its absolute ridge comes to).
        absolute_ridge: in the units of the summed Gram.
        ridge_chosen: whether the ridge was chosen on the calibration blocks.
        ridge_table: the ridges tried, ascending; empty where none was chosen.
        condition: 1-norm condition number (estimate) of the regularised Gram.
        backward_error: normwise, of W.
        prompts: prompts in the statistics, per class, background included.
        calibration_prompts: the same for the calibration blocks.
        accuracy: balanced accuracy per view kind, before abstaining.
        domain_accuracy: accuracy per domain and view kind, before abstaining.
        thresholds: conformal threshold per view kind.
        threshold: the one used, the smallest of them.
        rejected: share of known prompts below it, per view kind.
        background_rejected: share of held-out background prompts below it, per class and view.
        temperature: of the softmax.
        warnings: one line each, for the user.
        curve: what abstaining costs and brings at other levels; empty without held-out prompts.
        confusions: pairs of domains of which one takes held-out prompts of the other.
    """

    solver: str
    ridge: float
    absolute_ridge: float
    ridge_chosen: bool
    ridge_table: tuple[RidgeRow, ...]
    condition: float
    backward_error: float
    prompts: dict[str, int]
    calibration_prompts: dict[str, int]
    accuracy: dict[str, float]
    domain_accuracy: dict[str, dict[str, float]]
    thresholds: dict[str, float]
    threshold: float
    rejected: dict[str, float]
    background_rejected: dict[str, dict[str, float]]
    temperature: float
    warnings: tuple[str, ...]
    curve: tuple[CurvePoint, ...] = ()
    confusions: tuple[Confusion, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for strict JSON: infinite thresholds and condition numbers become None."""
        values = asdict(self)
        values["threshold"] = _finite(self.threshold)
        values["thresholds"] = {view: _finite(value) for view, value in self.thresholds.items()}
        values["condition"] = _finite(self.condition)
        values["ridge_table"] = [asdict(row) for row in self.ridge_table]
        values["warnings"] = list(self.warnings)
        values["curve"] = [asdict(point) for point in self.curve]
        values["confusions"] = [asdict(pair) for pair in self.confusions]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RouterReport:
        """Make a report from what :meth:`to_dict` returned.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        read = dict(values)
        read["threshold"] = _or_infinite(read["threshold"], -math.inf)
        read["thresholds"] = {
            view: _or_infinite(value, -math.inf) for view, value in read["thresholds"].items()
        }
        read["condition"] = _or_infinite(read["condition"], math.inf)
        read["ridge_table"] = tuple(RidgeRow(**row) for row in read["ridge_table"])
        read["warnings"] = tuple(read["warnings"])
        # reports of earlier versions have neither
        read["curve"] = tuple(CurvePoint(**point) for point in read.get("curve", ()))
        read["confusions"] = tuple(Confusion(**pair) for pair in read.get("confusions", ()))
        return cls(**read)


def fit_warnings(
    names: tuple[str, ...],
    has_background: bool,
    abstain: float,
    calibration_prompts: Mapping[str, int],
    found: HeldOut,
    chosen_ridge: float | None,
) -> tuple[str, ...]:
    """Return what a user should know about a fit, one line each.

    Args:
        names: the domains that are routes.
        has_background: whether a background class exists.
        abstain: the share that may be rejected.
        calibration_prompts: held-out prompts per domain.
        found: what the held-out prompts say.
        chosen_ridge: the ridge that was chosen on the blocks, None where it was not.
    """
    lines: list[str] = []
    if len(names) == 1 and not has_background:
        lines.append(
            f"'{names[0]}' is the only domain: its score was fitted to be 1 without a"
            " counter-example, so it tells known from unknown poorly and nearly every request goes"
            f" to '{names[0]}'; add a second domain or a background class"
        )
    empty = [name for name in names if not calibration_prompts.get(name)]
    if empty:
        lines.append(
            f"no held-out prompts for {', '.join(empty)}: thresholds, temperature and ridge do not"
            " take them into account"
        )
    if abstain > 0:
        needed = prompts_needed(abstain)
        views = found.view_prompts
        few = [f"{view} ({count})" for view, count in views.items() if count < needed]
        if few or not views:
            lines.append(
                f"too few held-out prompts to reject {abstain:g} of the known ones: {needed} of"
                f" each view are needed, there are {', '.join(few) or 'none'}; the router never"
                " abstains"
            )
    caught = [share for shares in found.background_rejected.values() for share in shares.values()]
    if math.isfinite(found.threshold) and caught and max(caught) < HARDLY:
        lines.append(
            f"router.abstain {abstain:g} puts the threshold so low that hardly any stranger goes to"
            f" the base ({max(caught):.1%} of the held-out background does); a larger one catches"
            " more (asr info shows the curve)"
        )
    lines += [
        f"{pair.share:.0%} of the {pair.prompts} held-out prompts of '{pair.domain}' are taken by"
        f" '{pair.taken_by}': expect confusion, or make them one domain"
        for pair in found.confusions
    ]
    if chosen_ridge is not None and chosen_ridge in (RIDGE_GRID[0], RIDGE_GRID[-1]):
        lines.append(
            f"the chosen ridge {chosen_ridge:g} is at the edge of the grid; a fixed router.ridge"
            " beyond it may be better"
        )
    return tuple(lines)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_infinite(value: float | None, infinite: float) -> float:
    return infinite if value is None else float(value)
