"""The comparison as a figure: one panel per domain, its score after each training, two lines.

Blue and orange of Okabe and Ito's palette, made for colour vision deficiency, with different
markers and a label at each line's end. Draws into memory with matplotlib's Agg canvas; no window,
no global pyplot state.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from asr.compare.forgetting import finding, require_same_domains
from asr.eval.matrix import EvalMatrix

OURS_LABEL = "a private adapter per domain, chosen by the router"
OTHER_LABEL = "one LoRA, trained on every domain in turn"
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#6e6e6e"
_PANEL = 2.75  # inches


def comparison_png(ours: EvalMatrix, other: EvalMatrix, *, dpi: int = 130) -> bytes:
    """Return a PNG; equal matrices give equal bytes on one matplotlib version.

    Args:
        ours: private adapters, routed; its ``base`` scores are drawn too.
        other: one LoRA trained through the same domains, its scores as ``routed``.
        dpi: dots per inch.

    Raises:
        ValueError: the two matrices are not over the same domains.
    """
    require_same_domains(ours, other)
    count = len(ours.domains)
    width = max(count * _PANEL, 6.5)
    figure = Figure(figsize=(width, 4.0), dpi=dpi, layout=ConstrainedLayoutEngine(wspace=0.04))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False, sharey=_same_scale(ours))[0]
    for j, axes in enumerate(panels):
        _panel(axes, ours, other, j)
    panels[0].set_ylabel("score on test prompts")
    title = textwrap.fill(finding(ours, other), int(width * 10.5))
    figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.01, ha="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=1 if width < 8 else 3,
        frameon=False,
        fontsize=9,
    )
    buffer = io.BytesIO()
    # "Software" would put matplotlib's version into the bytes.
    figure.savefig(
        buffer, format="png", bbox_inches="tight", pad_inches=0.1, metadata={"Software": None}
    )
    return buffer.getvalue()


def _panel(axes: Axes, ours: EvalMatrix, other: EvalMatrix, j: int) -> None:
    """Draw domain j: from its own training on, and the base as a dotted line."""
    count = len(ours.domains)
    moments = np.arange(j, count, dtype=np.float64)
    ends = float(ours.routed[-1, j]), float(other.routed[-1, j])
    _line(axes, moments + 0.04, ours, j, _Style(_BLUE, "o", 6, "-", OURS_LABEL, 3))
    _line(axes, moments - 0.04, other, j, _Style(_ORANGE, "s", 8, "--", OTHER_LABEL, 2))
    close = abs(ends[0] - ends[1]) < 0.08 * max(1.0, *np.abs(ends))
    for end, rival, colour in zip(ends, ends[::-1], (_BLUE, _ORANGE), strict=True):
        if not np.isfinite(end):
            continue
        above = end > rival or (end == rival and colour == _BLUE)
        axes.annotate(
            f"{end:.2f}",
            (count - 1, sum(ends) / 2 if close else end),  # near ends stand above each other
            xytext=(12, (3 if above else -9) if close else -3),
            textcoords="offset points",
            fontsize=9,
            color=colour,
            fontweight="bold",
            # over the line of the base, which would strike a number near it through
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            zorder=5,
        )
    if np.isfinite(ours.base[j]):
        axes.axhline(
            float(ours.base[j]), color=_GREY, linestyle=":", linewidth=1.4, label="base, no adapter"
        )
    if j:  # not trained yet
        axes.axvspan(-0.5, j - 0.5, color="#efefef", zorder=0)
        axes.text(
            (j - 1) / 2,
            0.5,
            "not trained yet",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="center",
            rotation=90,
            fontsize=8,
            color=_GREY,
        )
    arrow = "" if ours.higher_is_better[j] else ", lower is better"
    heading = axes.set_title(f"{ours.domains[j]}{arrow} (n = {ours.n[j]})", fontsize=10, loc="left")
    heading.set_parse_math(False)
    axes.set_xlim(-0.5, count - 0.2)  # room for the labels of the last values
    axes.set_xticks(range(count), ours.domains, rotation=35, ha="right", rotation_mode="anchor")
    for tick in axes.get_xticklabels():
        tick.set_parse_math(False)  # a "$" in a name is a dollar
        tick.set_fontsize(8.5)
    axes.set_xlabel("after training", fontsize=9)
    if _same_scale(ours):
        axes.set_ylim(-0.04, 1.06)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@dataclass(frozen=True)
class _Style:
    """How one of the two lines looks."""

    colour: str
    marker: str
    size: float
    line: str
    label: str
    layer: int


def _line(
    axes: Axes, moments: npt.NDArray[np.float64], matrix: EvalMatrix, j: int, style: _Style
) -> None:
    values = matrix.routed[j:, j]  # (T - j,)
    bounds = matrix.routed_interval[j:, j]  # (T - j, 2)
    axes.plot(
        moments,
        values,
        color=style.colour,
        marker=style.marker,
        markersize=style.size,
        linestyle=style.line,
        linewidth=2,
        label=style.label,
        zorder=style.layer,
    )
    low, high = values - bounds[:, 0], bounds[:, 1] - values
    if np.isfinite(low).all():
        axes.errorbar(
            moments,
            values,
            yerr=np.clip([low, high], 0.0, None),
            fmt="none",
            ecolor=style.colour,
            elinewidth=1.0,
            alpha=0.45,
            capsize=2.5,
        )


def _same_scale(matrix: EvalMatrix) -> bool:
    """Whether all scores are shares: then every panel shows 0 to 1."""
    known = matrix.routed[np.isfinite(matrix.routed)]
    return all(matrix.higher_is_better) and bool(((known >= 0.0) & (known <= 1.0)).all())
