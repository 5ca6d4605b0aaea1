"""The finding and the pictures say what the numbers say, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from asr.compare import finding, forgotten
from asr.compare.figures import comparison_png
from asr.compare.tables import comparison_table
from asr.eval.matrix import EvalMatrix, Scores

N = 20


def matrix(
    rows: list[list[float]],
    scorer: str = "exact",
    names: str = "abcd",
    base: float | None = None,
    n: int = N,
) -> EvalMatrix:
    """Rows of means after each domain, as shares of N prompts (or losses)."""
    chosen = names[: len(rows)]
    cells = {}
    for k, row in enumerate(rows):
        for j, value in enumerate(row):
            hits = round(value * n)
            values = [value] * n if scorer == "loss" else [1.0] * hits + [0.0] * (n - hits)
            cells[chosen[k], chosen[j]] = Scores(values)
    bases = None if base is None else {name: Scores([base] * n) for name in chosen}
    return EvalMatrix.from_scores("templated", dict.fromkeys(chosen, scorer), cells, base=bases)


KEPT = [[0.8], [0.8, 0.9], [0.8, 0.9, 0.5]]
LOST = [[0.8], [0.3, 0.9], [0.1, 0.2, 0.5]]


def test_forgotten_is_what_is_gone_at_the_end() -> None:
    assert forgotten(matrix(LOST)) == pytest.approx([0.7, 0.7, 0.0])
    assert forgotten(matrix(KEPT)) == pytest.approx([0.0, 0.0, 0.0])
    assert forgotten(matrix([[2.0], [3.0, 1.0]], "loss")) == pytest.approx([1.0, 0.0])
    assert len(forgotten(EvalMatrix("templated"))) == 0


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [
        (
            KEPT,
            LOST,
            "One LoRA forgets: on the first 2 domains it went from 0.85 to 0.15; "
            "private adapters kept 0.85.",
        ),
        (
            [[0.8], [0.7, 0.9]],
            [[0.8], [0.3, 0.9]],
            "One LoRA forgets more: on the first domain it went from 0.80 to 0.30; "
            "private adapters went from 0.80 to 0.70.",
        ),
        (
            [[0.8], [0.6, 0.9]],
            [[0.8], [0.8, 0.9]],
            "One LoRA forgot less than private adapters: on the first domain it kept 0.80; "
            "private adapters went from 0.80 to 0.60.",
        ),
        (
            [[0.8], [0.8, 0.9]],
            [[0.7], [0.7, 0.9]],
            "One LoRA forgets no more than private adapters: on the first domain it kept 0.70; "
            "private adapters kept 0.80.",
        ),
        (
            [[0.8]],
            [[0.8]],
            "One domain so far: both are the same training, and nothing can be forgotten yet.",
        ),
    ],
)
def test_the_finding_follows_the_numbers(
    ours: list[list[float]], other: list[list[float]], expected: str
) -> None:
    assert finding(matrix(ours), matrix(other)) == expected


def test_a_loss_that_rises_is_forgetting() -> None:
    ours, other = matrix([[1.0], [1.0, 1.0]], "loss"), matrix([[1.0], [4.0, 1.0]], "loss")
    assert finding(ours, other).startswith("One LoRA forgets: on the first domain it went from")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, N), min_size=3, max_size=3), st.integers(0, N), st.integers(0, N))
def test_whoever_lost_more_is_named(first: list[int], ours_now: int, other_now: int) -> None:
    learned = first[0] / N
    ours = matrix([[learned], [ours_now / N, first[1] / N]])
    other = matrix([[learned], [other_now / N, first[2] / N]])
    said = finding(ours, other)
    assert said.startswith("One LoRA forgets:") == (other_now < ours_now >= first[0])
    assert said.startswith("One LoRA forgets more:") == (other_now < ours_now < first[0])
    assert said.startswith("One LoRA forgot less") == (other_now > ours_now)


@pytest.mark.parametrize(
    ("ours", "other", "message"),
    [
        (matrix(KEPT), matrix(LOST[:2]), "differ in their domains"),
        (matrix(KEPT), matrix(LOST, names="abdc"), "differ in their domains"),
        (matrix(KEPT), matrix(LOST, "label"), "differ in their scorers"),
        (matrix(KEPT), matrix(LOST, n=10), "differ in their n"),
        (EvalMatrix("templated"), EvalMatrix("templated"), "no domain to compare"),
    ],
)
def test_matrices_that_do_not_compare_are_refused(
    ours: EvalMatrix, other: EvalMatrix, message: str
) -> None:
    for use in (finding, comparison_table, comparison_png):
        with pytest.raises(ValueError, match=message):
            use(ours, other)


def printed(ours: EvalMatrix, other: EvalMatrix) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(ours, other))
    return console.export_text()


def test_the_table_marks_what_fell_and_fits_80_columns() -> None:
    text = printed(matrix(KEPT, base=0.05), matrix(LOST))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.replace("│", " ").split() for line in text.splitlines() if "│" in line]
    assert ["a", "private", "+", "router", "0.05", "0.80", "0.80", "0.80"] in lines
    assert ["one", "LoRA", "0.80", "0.30", "!", "0.10", "!"] in lines
    assert ["one", "LoRA", "0.90", "0.20", "!"] in lines
    assert ["c", "private", "+", "router", "0.05", "0.50"] in lines
    assert "20 prompts each" in text


def test_a_loss_is_marked_where_it_rises() -> None:
    text = printed(matrix([[1.0], [1.0, 1.0]], "loss"), matrix([[1.0], [1.5, 1.0]], "loss"))
    assert text.count("!") == 1
    assert "1.50 !" in text


def test_the_figure_is_a_png_and_a_function_of_the_matrices() -> None:
    ours, other = matrix(KEPT, base=0.05), matrix(LOST)
    png = comparison_png(ours, other)
    assert png.startswith(b"\x89PNG")
    assert png == comparison_png(ours, other)
    assert png != comparison_png(ours, matrix([[0.8], [0.3, 0.9], [0.1, 0.3, 0.5]]))


def test_the_figure_takes_losses_one_domain_and_odd_names() -> None:
    losses = matrix([[1.0], [4.0, 1.0]], "loss")
    assert comparison_png(losses, losses).startswith(b"\x89PNG")
    single = matrix([[0.5]])
    assert comparison_png(single, single).startswith(b"\x89PNG")
    assert np.isnan(single.base).all()
    dollars = matrix([[0.5], [0.5, 0.5]], names="$_")
    assert comparison_png(dollars, dollars).startswith(b"\x89PNG")
