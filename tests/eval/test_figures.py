"""The heat map: a PNG that holds all its labels and is the same every time."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from asr.eval.figures import _scale, matrix_png
from asr.eval.matrix import EvalMatrix, Scores

Maker = Callable[..., EvalMatrix]


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_png_grows_with_the_domains(make_matrix: Maker, size: int) -> None:
    width, height = size_of(matrix_png(make_matrix(size)))
    assert 2 * size * 60 < width < 2 * size * 75 + 900  # two panels of cells, and the labels
    assert size * 60 < height < (size + 2) * 75 + 400


def test_png_is_deterministic(make_matrix: Maker) -> None:
    assert matrix_png(make_matrix(3)) == matrix_png(make_matrix(3))


def test_long_names_widen_the_figure(make_matrix: Maker) -> None:
    short = size_of(matrix_png(make_matrix(2, names=["a", "b"])))
    long = size_of(matrix_png(make_matrix(2, names=["a" * 60, "b" * 60])))
    assert long[0] > short[0] + 60 * 8
    assert long[1] > short[1] + 100


def test_a_name_with_dollars_is_no_formula(make_matrix: Maker) -> None:
    assert size_of(matrix_png(make_matrix(2, names=["a$\\bad$", "b"])))[0] > 300


def test_partial_and_mixed_matrices_can_be_drawn() -> None:
    m = EvalMatrix("templated")
    m.add_domain("a", "exact")
    assert size_of(matrix_png(m))[0] > 200  # nothing scored yet
    m.add_domain("b", "loss", base=Scores([2.0, 3.0]))
    m.record("b", "a", routed=Scores([1, 0]))
    assert size_of(matrix_png(m))[0] > 300


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="the matrix has no domain to draw"):
        matrix_png(EvalMatrix("bare"))


def test_brighter_is_better_in_every_scale() -> None:
    values = np.array([[0.2, 3.0], [0.8, 1.0]])
    np.testing.assert_array_equal(_scale(values[:, :1], [True]).shade, values[:, :1])
    np.testing.assert_allclose(_scale(values, [False, False]).shade[:, 1], [0.0, 1 - 0.8 / 2.8])
    np.testing.assert_allclose(_scale(values, [True, False]).shade, [[0.0, 0.0], [1.0, 1.0]])
