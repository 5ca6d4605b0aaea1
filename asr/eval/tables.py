"""The matrix as terminal tables (rich): what each domain got, from whom, and how sure that is.

ASCII text only, so that any terminal shows it; rich itself honours ``NO_COLOR`` and pipes. Fits
80 columns: there, intervals stand below their means and the scorer below its domain; narrower
still, the intervals are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.eval.matrix import EvalMatrix

WIDE = 112
"""Columns from which every value stands on one line with its interval."""

NARROW = 76
"""Columns below which intervals are left out: names would shrink to nothing beside them."""


def matrix_table(matrix: EvalMatrix, width: int = 80) -> Table:
    """Return the table of the latest step: per domain n, base, routed, oracle, routing accuracy.

    "oracle" has the domain's own adapter forced: routed less oracle is what routing costs.

    Args:
        matrix: what to show; its last row.
        width: columns available; below :data:`WIDE` the cells take two lines, below
            :data:`NARROW` they hold means alone.

    Raises:
        ValueError: if the matrix has no domain.
    """
    if not matrix.domains:
        raise ValueError("the matrix has no domain to show")
    gap = " " if width >= WIDE else "\n"

    def cell(mean: float, interval: Iterable[float], style: str = "") -> Text:
        text = Text("-" if math.isnan(mean) else f"{mean:.3f}", style=style)
        low, high = interval
        if width >= NARROW and not math.isnan(low):
            text.append(f"{gap}[{low:.2f}, {high:.2f}]", style="not bold dim")
        return text

    table = Table(
        title=f"After {matrix.domains[-1]}, {matrix.kind} prompts (95% intervals)",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("domain", overflow="fold", min_width=8)
    for heading in ("n", "base", "routed", "oracle", "routing"):
        # Numbers never wrap or lose digits: a narrow terminal folds the names instead.
        table.add_column(heading, justify="right", no_wrap=True)
    for j, name in enumerate(matrix.domains):
        arrow = "" if matrix.higher_is_better[j] else ", lower is better"
        domain = Text(name).append(f"{gap}({matrix.scorers[j]}{arrow})", style="dim")
        table.add_row(
            domain,
            str(matrix.n[j]),
            cell(matrix.base[j], matrix.base_interval[j]),
            cell(matrix.routed[-1, j], matrix.routed_interval[-1, j], "bold"),
            cell(matrix.oracle[-1, j], matrix.oracle_interval[-1, j]),
            cell(matrix.routing_accuracy[-1, j], (math.nan, math.nan)),
        )
    return table


def summary_lines(matrix: EvalMatrix) -> list[str]:
    """Return the lines below the table: routing accuracy, then OP and BWT."""
    lines = []
    routing = matrix.routing()
    if routing is not None:
        abstained = int(matrix.confusion[:, -1].sum())
        lines.append(
            f"routing accuracy {routing.mean:.3f} [{routing.low:.3f}, {routing.high:.3f}] "
            f"on {routing.n} prompts, {abstained} sent to the base"
        )
    parts = [
        ("OP", matrix.op()),
        ("oracle", matrix.op("oracle")),
        ("base", matrix.op("base")),
    ]
    known = [f"{name} {value:.3f}" for name, value in parts if value is not None]
    bwt = matrix.bwt()
    if bwt is not None:
        known.append(f"BWT {bwt:+.3f}")
    if known:
        lines.append(", ".join(known))
    elif len(set(matrix.higher_is_better)) > 1:
        lines.append("no OP or BWT: scores of both directions do not average")
    return lines


def print_matrix(matrix: EvalMatrix, console: Console | None = None) -> None:
    """Print table and summary to ``console`` (default: a new one on standard output).

    Raises:
        ValueError: if the matrix has no domain.
    """
    console = console or Console()
    console.print(matrix_table(matrix, console.width))
    for line in summary_lines(matrix):
        console.print(Text(line))
