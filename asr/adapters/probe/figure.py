"""The heat map of a probe: layers down, module types across, shares of the energy as colours.

Left: all tokens. Right: without the first token, where massive activations live. Both panels have
one logarithmic scale; colours are ``cividis`` (Nunez et al. 2018, arXiv:1712.01662), yellow is
more. The frame marks the winner of each panel, the dashed line the router layer: modules below that
line (in deeper layers) keep a domain one-pass.

Draws into memory with matplotlib's Agg canvas; no window, no global pyplot state.
"""

from __future__ import annotations

import io
import textwrap

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from asr.adapters.probe.result import ModuleScore, ProbeResult

Floats = npt.NDArray[np.float64]

_CMAP = colormaps["cividis"]
_CELL = (0.62, 0.235)  # inches: wide enough for "12%", low enough for 80 layers on a page
_FONT = 8.0
_EMPTY = "#f4f4f4"
_FRAME = "#d1001f"
_DECADES = 4
"""Shares are coloured over at most so many powers of ten; less is drawn as the least."""
_SHOWN = 0.01
"""Shares from this one on stand in their cell."""


def probe_png(result: ProbeResult, *, dpi: int = 120) -> bytes:
    """Return a PNG of the probe; equal results give equal bytes on one matplotlib version."""
    kinds = _kinds(result)
    layers = result.base.n_layers
    shares = _grid(result, kinds, [module.share for module in result.modules])
    rest = np.array([module.energy_without_first for module in result.modules])
    total = float(rest.sum())
    panels = [("all tokens", shares, result.winner)]
    if total > 0:
        best = result.modules[int(rest.argmax())]
        panels.append(("without the first token", _grid(result, kinds, list(rest / total)), best))
    label = 0.075 * max(len(kind) for kind in kinds)  # inches of a type's name, slanted
    width = len(panels) * (len(kinds) * _CELL[0] + 0.55) + 1.3
    height = layers * _CELL[1] + label + 1.9
    figure = Figure(
        figsize=(max(width, 6.4), height), dpi=dpi, layout=ConstrainedLayoutEngine(wspace=0.04)
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    top = max(float(np.nanmax(values)) for _, values, _ in panels)
    least = min(float(values[values > 0].min()) for _, values, _ in panels)
    norm = LogNorm(min(max(least, top / 10**_DECADES), top / 10), top)
    for place, (title, values, best) in enumerate(panels):
        _draw(axes[place], values, kinds, norm)
        _mark(axes[place], best, kinds)
        axes[place].set_title(f"{title}\n{_short(best)}", fontsize=9.5, loc="left")
        axes[place].title.set_parse_math(False)
        _router_line(axes[place], result, place == 0)
    axes[0].set_ylabel("layer (first to last)")
    bar = figure.colorbar(
        ScalarMappable(norm, _CMAP), ax=list(axes), fraction=0.03, pad=0.02, aspect=40, extend="min"
    )
    bar.set_label("share of the gradient energy (logarithmic)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    title, says = _words(result)
    wrapped = textwrap.fill(says, width=max(50, int(figure.get_figwidth() * 13)))
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    figure.supxlabel(wrapped, fontsize=9.5, x=0.01, ha="left")
    for text in figure.texts:
        text.set_parse_math(False)  # a "$" in a name is a dollar
    buffer = io.BytesIO()
    # "Software" would put matplotlib's version into the bytes.
    figure.savefig(
        buffer,
        format="png",
        bbox_inches="tight",
        pad_inches=0.1,
        metadata={"Software": None, "Title": "asr probe"},
    )
    return buffer.getvalue()


def _kinds(result: ProbeResult) -> list[str]:
    """Module types in the order in which a layer has them, the fullest layer first."""
    in_layer: dict[int, int] = {}
    for module in result.modules:
        in_layer[module.layer] = in_layer.get(module.layer, 0) + 1
    kinds = {module.kind for module in result.modules}
    usual = [
        *("qkv_proj", "query_key_value", "c_attn", "attn.c_attn", "q_proj", "k_proj", "v_proj"),
        *("o_proj", "out_proj", "dense", "attn.c_proj", "gate_proj", "up_proj", "gate_up_proj"),
        *("fc1", "c_fc", "mlp.c_fc", "dense_h_to_4h", "down_proj", "fc2", "mlp.c_proj"),
        "dense_4h_to_h",
    ]
    known = [kind for kind in usual if kind in kinds]
    return [*known, *sorted(kinds - set(known))]


def _grid(result: ProbeResult, kinds: list[str], values: list[float]) -> Floats:
    """Lay values out as (layers, types); NaN where a layer has no such module."""
    grid = np.full((result.base.n_layers, len(kinds)), np.nan)
    for module, value in zip(result.modules, values, strict=True):
        grid[module.layer, kinds.index(module.kind)] = value
    return grid


def _draw(axes: Axes, values: Floats, kinds: list[str], norm: LogNorm) -> None:
    low = float(norm.vmin or 0.0)
    clipped = np.where(values < low, low, values)  # NaN stays
    axes.imshow(np.ma.masked_invalid(clipped), cmap=_CMAP, norm=norm, aspect="auto")
    axes.set_facecolor(_EMPTY)
    for (layer, place), share in np.ndenumerate(values):
        if share >= _SHOWN:  # false for NaN
            # cividis passes mid luminance at 0.55: white below, black above stays readable.
            ink = "white" if float(norm(share)) < 0.55 else "black"
            text = f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
            axes.text(place, layer, text, ha="center", va="center", color=ink, fontsize=_FONT)
    axes.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right", rotation_mode="anchor")
    layers = len(values)
    axes.set_yticks(range(0, layers, 1 if layers <= 48 else 2))
    for tick in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        tick.set_fontsize(_FONT)
        tick.set_parse_math(False)
    axes.tick_params(which="both", length=0)
    axes.set_xticks(np.arange(-0.5, len(kinds)), minor=True)
    axes.set_yticks(np.arange(-0.5, layers), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(axes: Axes, module: ModuleScore, kinds: list[str]) -> None:
    corner = (kinds.index(module.kind) - 0.5, module.layer - 0.5)
    axes.add_patch(
        Rectangle(corner, 1, 1, fill=False, edgecolor=_FRAME, linewidth=2.2, clip_on=False)
    )


def _router_line(axes: Axes, result: ProbeResult, named: bool) -> None:
    layer = result.base.router_layer
    if layer is None:
        return
    axes.axhline(layer - 0.5, color="white", linewidth=2.6)
    axes.axhline(layer - 0.5, color="black", linewidth=1.2, linestyle=(0, (4, 2)))
    if named:
        axes.annotate(
            f"router\nlayer {layer}",
            (0.0, layer - 0.5),
            xycoords=("axes fraction", "data"),
            xytext=(-24, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=_FONT,
            annotation_clip=False,
        )


def _short(module: ModuleScore) -> str:
    return f"most: layer {module.layer}, {module.kind}"


def _words(result: ProbeResult) -> tuple[str, str]:
    """Title, and what the picture says."""
    domains = len(result.domains)
    data = "a generic text" if result.generic_text else f"{domains} domain{'s'[: domains != 1]}"
    title = f"Where would an adapter on {result.base.name} learn most at first? ({data})"
    best = result.winner
    says = (
        "Each cell is one linear module; its colour is its share of the gradient energy that "
        f"adapters on all modules would receive before their first step. {best.name} gets "
        f"{100 * best.share:.1f}%"
    )
    if result.margin is not None:
        says += f", {result.margin:.1f} times the next module"
        if result.within_noise:
            says += " (within noise: the two may change places)"
    says += "; the red frame marks it."
    if result.base.router_layer is not None:
        says += (
            " The router reads at the dashed line: an adapter below it needs one pass over a "
            "prompt, an adapter above it a second one."
        )
    return title, says
