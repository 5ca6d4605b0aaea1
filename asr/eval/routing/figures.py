"""Three panels of a routing report: reliability, known scores, what abstaining costs and brings.

Draws into memory with matplotlib's Agg canvas; no window, no global pyplot state. Blue is known,
orange a stranger (Okabe and Ito's colours, which colour-blind people tell apart).
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr.eval.routing.measures import abstain_curve
from asr.eval.routing.report import RoutingReport

_KNOWN, _STRANGER, _LINE = "#0072b2", "#e69f00", "#555555"


def routing_png(report: RoutingReport, *, dpi: int = 120) -> bytes:
    """Return a PNG; equal reports give equal bytes on one matplotlib version."""
    figure = Figure(figsize=(12.6, 4.0), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw_reliability(left, report)
    _draw_scores(middle, report)
    _draw_curve(right, report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_reliability(axes: Axes, report: RoutingReport) -> None:
    axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle=":", label="as it should be")
    said = [row["said"] for row in report.reliability]
    right = [row["right"] for row in report.reliability]
    axes.plot(said, right, color=_KNOWN, linewidth=1)
    sizes = [12 + 400 * row["weight"] for row in report.reliability]
    axes.scatter(said, right, s=sizes, color=_KNOWN, label="questions (area: how many)")
    axes.set(xlabel="probability that the route is right", ylabel="share that was right")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=f"calibration error {report.ece:.3f}")
    legend = axes.legend(loc="lower right", frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([30])


def _draw_scores(axes: Axes, report: RoutingReport) -> None:
    low, high = np.quantile(report.score, (0.01, 0.99)) if len(report.score) else (0.0, 1.0)
    bins = np.linspace(low, high, 31).tolist()
    for rows, colour, name in (
        (report.known, _KNOWN, "of a domain"),
        (~report.known, _STRANGER, "strangers"),
    ):
        if rows.any():
            values = np.clip(report.score[rows], low, high)
            weights = np.full(len(values), 1.0 / len(values))
            axes.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=name)
    if report.threshold is not None:
        axes.axvline(report.threshold, color=_LINE, linewidth=1.2, label="threshold")
    title = "known score" if report.auroc is None else f"known score, AUROC {report.auroc:.3f}"
    axes.set(xlabel="score", ylabel="share of the questions", title=title)
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_curve(axes: Axes, report: RoutingReport) -> None:
    thresholds, lost, caught = abstain_curve(report.score, report.known)
    axes.plot(lost, caught, color=_KNOWN, linewidth=1.5)
    if report.threshold is not None:
        place = int(np.searchsorted(thresholds, report.threshold))
        place = min(place, len(thresholds) - 1)
        axes.plot(lost[place], caught[place], "o", color=_STRANGER, label="this threshold")
        axes.annotate(
            f"{lost[place]:.0%} lost, {caught[place]:.0%} caught",
            (lost[place], caught[place]),
            xytext=(10, -14),
            textcoords="offset points",
            fontsize=8,
        )
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.set(xlabel="known questions sent to the base", ylabel="strangers sent to the base")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03), title="what abstaining costs and brings")
