"""Two ways of learning the same domains as one terminal table: forgetting is read along a row.

ASCII text only, 80 columns for four domains; rich honours ``NO_COLOR`` and pipes.
"""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from asr.compare.forgetting import require_same_domains
from asr.eval.matrix import EvalMatrix

OURS = "private + router"
OTHER = "one LoRA"


def comparison_table(ours: EvalMatrix, other: EvalMatrix) -> Table:
    """Return the table: two rows per domain, a column per moment, the base's score first.

    A score that fell by more than a twentieth since the domain was trained is marked with ``!`` and
    coloured.

    Raises:
        ValueError: the two matrices are not over the same domains.
    """
    require_same_domains(ours, other)
    table = Table(
        title=f"Test scores after {ours.domains[-1]} ({_prompts(ours)})",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("domain", overflow="fold", min_width=8)
    table.add_column("trained as", no_wrap=True)
    table.add_column("base", justify="right", no_wrap=True)
    for name in ours.domains:
        table.add_column(f"after\n{name}", justify="right", overflow="fold", min_width=6)
    for j, name in enumerate(ours.domains):
        for matrix, label in ((ours, OURS), (other, OTHER)):
            cells = [_cell(matrix, k, j) for k in range(len(matrix.domains))]
            first = matrix is ours
            table.add_row(
                Text(name if first else "", style="bold"),
                Text(label, style="bold" if first else ""),
                _number(float(ours.base[j])) if first else "",
                *cells,
                end_section=not first,
            )
    return table


def _cell(matrix: EvalMatrix, k: int, j: int) -> Text:
    if k < j:
        return Text("")
    now, then = float(matrix.routed[k, j]), float(matrix.routed[j, j])
    fell = (then - now) if matrix.higher_is_better[j] else (now - then)
    if fell > 0.05 * max(abs(then), abs(now)):
        return Text(f"{_number(now)} !", style="bold red")
    return Text(f"{_number(now)}  ", style="green" if k > j else "")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _prompts(matrix: EvalMatrix) -> str:
    sizes = sorted(set(matrix.n))
    return f"{sizes[0]} prompts each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} prompts"
