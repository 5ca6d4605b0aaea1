"""The terminal tables: what they say, and that they fit."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from asr.eval.matrix import EvalMatrix, Scores
from asr.eval.tables import matrix_table, print_matrix, summary_lines

Maker = Callable[..., EvalMatrix]


def printed(matrix: EvalMatrix, width: int, **options: object) -> str:
    out = io.StringIO()
    print_matrix(matrix, Console(file=out, width=width, **options))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 112, 160])
def test_every_line_fits_and_no_number_is_cut(make_matrix: Maker, width: int) -> None:
    names = ["a-domain-with-quite-a-long-name-indeed", "b", "c"]
    text = printed(make_matrix(3, names=names), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\u2026" not in text  # rich's mark of cut text
    assert "0.950" in text  # 38 of 40 routed to their own domain
    assert ("[" in text.split("routing accuracy")[0]) == (width >= 76)


def test_summary_by_hand() -> None:
    m = EvalMatrix("bare")
    m.add_domain("a", "exact", base=Scores([0, 0, 0, 1]))
    m.record("a", "a", routed=Scores([1, 1, 1, 0]), oracle=Scores([1, 1, 1, 1]))
    m.add_domain("b", "exact", base=Scores([0, 0]))
    m.record("b", "a", routed=Scores([1, 1, 0, 0]), oracle=Scores([1, 1, 1, 1]))
    m.record("b", "b", routed=Scores([1, 1]), oracle=Scores([1, 1]), routes=["b", None])
    assert summary_lines(m) == [
        "routing accuracy 0.500 [0.095, 0.905] on 2 prompts, 1 sent to the base",
        "OP 0.750, oracle 1.000, base 0.125, BWT -0.250",
    ]


def test_mixed_directions_say_why_there_is_no_op() -> None:
    m = EvalMatrix("bare")
    m.add_domain("a", "exact")
    m.add_domain("b", "loss")
    assert summary_lines(m) == ["no OP or BWT: scores of both directions do not average"]
    assert "lower is better" in " ".join(printed(m, 160).split())


def test_names_are_not_read_as_markup(make_matrix: Maker) -> None:
    assert "[red]x" in printed(make_matrix(1, names=["[red]x"]), 120)


def test_no_color_is_respected(make_matrix: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(make_matrix(2), 80, force_terminal=True)
    assert "\x1b[3" not in text  # no foreground colour code


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="the matrix has no domain to show"):
        matrix_table(EvalMatrix("bare"))
