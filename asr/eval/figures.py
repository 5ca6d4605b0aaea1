"""The heat map of an evaluated sequence: T x T scores, and where the router sent what.

Left: rows are "after X" (the base alone on top; the oracle, each domain's own adapter forced, at
the bottom), columns are domains. Right, where the matrix holds it: the confusion after the last
domain. Colours are ``cividis``: perceptually uniform, made for colour vision deficiency (Nunez et
al. 2018, arXiv:1712.01662); yellow is always better, and every cell carries its number.

Draws into memory with matplotlib's Agg canvas; no window, no global pyplot state.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from asr.eval.matrix import EvalMatrix
from asr.eval.metrics import BASE, direction

Floats = npt.NDArray[np.float64]

_CMAP = colormaps["cividis"]
_CELL = 0.62  # inches: wide enough for "0.85" at the cell font below
_CELL_FONT = 10.0
_EMPTY = "#f4f4f4"


def matrix_png(matrix: EvalMatrix, *, dpi: int = 120) -> bytes:
    """Return a PNG of the matrix; equal matrices give equal bytes on one matplotlib version.

    Raises:
        ValueError: if the matrix has no domain.
    """
    if not matrix.domains:
        raise ValueError("the matrix has no domain to draw")
    size = len(matrix.domains)
    both = bool(matrix.confusion.any())
    label = 0.085 * max(len(name) for name in [*matrix.domains, "after base"])  # inches of a name
    panels = [size, size + 1] if both else [size]
    width = sum(cells * _CELL + label + 1.9 for cells in panels)
    height = (size + 2) * _CELL + label + 1.5
    figure = Figure(
        figsize=(max(width, 5.2), height), dpi=dpi, layout=ConstrainedLayoutEngine(wspace=0.06)
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=panels)[0]
    _draw_scores(axes[0], matrix)
    if both:
        _draw_confusion(axes[1], matrix)
    buffer = io.BytesIO()
    # "tight": a title wider than its panel is not part of the layout and must not be clipped.
    # "Software" would put matplotlib's version into the bytes.
    figure.savefig(
        buffer, format="png", bbox_inches="tight", pad_inches=0.1, metadata={"Software": None}
    )
    return buffer.getvalue()


@dataclass(frozen=True)
class _Scale:
    """Values mapped to [0, 1] for colouring (1 is best), and how the colour bar explains it."""

    shade: Floats
    low: float
    high: float
    label: str
    reverse: bool = False


def _scale(values: Floats, better: list[bool]) -> _Scale:
    """Choose the colour scale for (rows, T) values.

    Scores all within [0, 1] and higher-is-better use exactly that range, so figures compare.
    One direction otherwise: the range found. Mixed directions: each column by its own range.
    """
    sign = direction(better, values.shape[1])
    low, high = float(np.nanmin(values, initial=np.inf)), float(np.nanmax(values, initial=-np.inf))
    if not np.isfinite(low):  # nothing scored yet
        low, high = 0.0, 1.0
    if sign == 1:
        if low >= 0.0 and high <= 1.0:
            return _Scale(values, 0.0, 1.0, "score")
        return _Scale(_stretch(values, low, high), low, high, "score")
    if sign == -1:
        return _Scale(1.0 - _stretch(values, low, high), low, high, "score (lower is better)", True)
    shade = np.empty_like(values)
    for j, upward in enumerate(better):
        column = values[:, j]
        known = column[np.isfinite(column)]
        stretched = _stretch(column, known.min(), known.max()) if known.size else column
        shade[:, j] = stretched if upward else 1.0 - stretched
    return _Scale(shade, 0.0, 1.0, "worst to best of each column")


def _stretch(values: Floats, low: float, high: float) -> Floats:
    # A column of one value has no worst and best: the middle colour.
    return (values - low) / (high - low) if high > low else values * 0.0 + 0.5


def _draw_scores(axes: Axes, matrix: EvalMatrix) -> None:
    rows, labels = [matrix.base], [f"{BASE} (no adapter)"]
    rows += list(matrix.routed)
    labels += [f"after {name}" for name in matrix.domains]
    oracle = matrix.oracle[-1]
    if np.isfinite(oracle).any():
        rows.append(oracle)
        labels.append("oracle (own adapter)")
    values = np.stack(rows)  # (T + 1 or T + 2, T)
    better = matrix.higher_is_better
    marks = [
        name if upward else f"{name} (lower is better)"
        for name, upward in zip(matrix.domains, better, strict=True)
    ]
    mixed = direction(better, len(better)) is None
    scale = _scale(values, better)
    texts = [["" if np.isnan(v) else _number(v) for v in row] for row in values]
    _grid(axes, scale.shade, texts, labels, marks if mixed else matrix.domains)
    for line in (0.5, len(matrix.domains) + 0.5):  # set base and oracle apart
        axes.axhline(line, color="black", linewidth=1.2)
    _title(axes, f"Scores, {matrix.kind} prompts", _summary(matrix), len(matrix.domains))
    low, high = (scale.high, scale.low) if scale.reverse else (scale.low, scale.high)
    mappable = ScalarMappable(Normalize(0.0, 1.0), _CMAP)
    bar = axes.get_figure().colorbar(  # type: ignore[union-attr]
        mappable, ax=axes, fraction=0.05, pad=0.03, aspect=30, shrink=0.9
    )
    bar.set_label(scale.label)
    ticks = np.linspace(0.0, 1.0, 6)
    named = [f"{low + t * (high - low):.2g}" for t in ticks]
    if mixed:
        named = ["worst", *[""] * (len(ticks) - 2), "best"]
    bar.set_ticks(list(ticks), labels=named)


def _draw_confusion(axes: Axes, matrix: EvalMatrix) -> None:
    counts = matrix.confusion.astype(np.float64)  # (T, T + 1)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    texts = [["" if not c else f"{int(c)}" for c in row] for row in counts]
    _grid(axes, share, texts, matrix.domains, [*matrix.domains, f"{BASE} (abstained)"])
    axes.axvline(len(matrix.domains) - 0.5, color="black", linewidth=1.2)
    axes.set_ylabel("prompts of")
    routing = matrix.routing()
    detail = []
    if routing is not None:
        detail = [
            f"accuracy {routing.mean:.3f}",
            f"95% [{routing.low:.3f}, {routing.high:.3f}]",
            f"{routing.n} prompts",
        ]
    _title(axes, f"Routed to, after {matrix.domains[-1]}", detail, len(matrix.domains))


def _grid(
    axes: Axes, shade: Floats, texts: list[list[str]], rows: list[str], columns: list[str]
) -> None:
    """Draw coloured cells with their numbers; ``shade`` is (rows, columns) in [0, 1] or NaN."""
    axes.imshow(np.ma.masked_invalid(shade), cmap=_CMAP, vmin=0.0, vmax=1.0, aspect="equal")
    axes.set_facecolor(_EMPTY)
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            if text:
                # cividis passes mid luminance at 0.55: white below, black above stays readable.
                ink = "white" if shade[i, j] < 0.55 else "black"
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=_CELL_FONT)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    for tick in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        tick.set_parse_math(False)  # a "$" in a name is a dollar
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(axes: Axes, first: str, details: list[str], size: int) -> None:
    """Write the title: details on one line, or, above few columns, one below the other."""
    lines = [first, *details] if size < 4 else [first, ", ".join(details)]
    axes.set_title("\n".join(lines), fontsize=10.5, loc="left").set_parse_math(False)


def _summary(matrix: EvalMatrix) -> list[str]:
    """Return OP and BWT of the routed scores, OP of oracle and base; what is None is left out."""
    parts = [
        ("OP", matrix.op()),
        ("BWT", matrix.bwt()),
        ("oracle OP", matrix.op("oracle")),
        ("base OP", matrix.op("base")),
    ]
    return [f"{name} {value:.3f}" for name, value in parts if value is not None]


def _number(value: float) -> str:
    """Return the value in at most five characters: 0.853 -> 0.85, 12.34 -> 12.3, 512.2 -> 512."""
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"
