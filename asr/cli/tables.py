"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from asr.eval.matrix import EvalMatrix
from asr.eval.tables import print_matrix


def print_matrices(matrices: Mapping[str, EvalMatrix], console: Console) -> None:
    """Print the matrix of each kind of prompts, a blank line between them."""
    for number, matrix in enumerate(matrices.values()):
        if number:
            console.print()
        print_matrix(matrix, console)
