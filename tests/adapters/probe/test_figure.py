"""The heat map: drawn for every shape of base, with the winner framed where it is."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
from matplotlib import image

from asr.adapters.probe.figure import probe_png
from asr.adapters.probe.result import ProbeResult
from tests.adapters.probe.probed import measured, result_of

FRAME = np.array([0xD1, 0x00, 0x1F]) / 255


def pixels(png: bytes) -> np.ndarray:
    return image.imread(io.BytesIO(png), format="png")[..., :3]


def frames(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the frame's colour."""
    rows, columns = np.nonzero(np.abs(pixels(png) - FRAME).max(axis=-1) < 0.02)
    return rows, columns


def winner_at(index: int, layers: int = 4, **options: object) -> ProbeResult:
    means = [1.0] * (3 * layers)
    means[index] = 30.0
    return result_of([measured(means=means, noise=0.1)], layers=layers, **options)  # type: ignore[arg-type]


@functools.cache
def drawn(index: int, layers: int = 4, router_layer: int | None = 2) -> bytes:
    """The figure of :func:`winner_at`, made once for all tests."""
    return probe_png(winner_at(index, layers, router_layer=router_layer))


def test_equal_results_give_equal_bytes() -> None:
    assert probe_png(winner_at(9)) == drawn(9)
    assert drawn(0) != drawn(9)


def test_the_frame_follows_the_winner() -> None:
    """Modules are layer by layer q_proj, up_proj, down_proj; there is a panel on each side."""
    first, deeper, wider = (frames(drawn(i)) for i in (0, 9, 2))
    assert first[0].min() < deeper[0].min()  # layer 0 above layer 3
    assert first[1].min() < wider[1].min()  # q_proj left of down_proj
    both = np.unique(first[1])
    assert np.diff(both).max() > 100  # one frame per panel


def test_the_router_line_is_left_out_of_a_base_too_shallow_to_route_in() -> None:
    with_line, without = drawn(0), drawn(0, router_layer=None)
    dark = [np.sum(pixels(png).max(axis=-1) < 0.05) for png in (with_line, without)]
    assert dark[0] > dark[1]


@pytest.mark.parametrize("layers", [1, 12, 80])
def test_every_depth_is_drawn(layers: int) -> None:
    png = drawn(1, layers, router_layer=None)
    assert pixels(png).shape[0] > 28 * layers
    assert frames(png)[0].size


def test_layers_without_a_module_and_energies_of_zero_are_drawn() -> None:
    result = winner_at(4)
    tree = result.model_dump()
    tree["modules"] = tree["modules"][:7]  # the others are no candidates
    fewer = ProbeResult.model_validate(tree)
    assert frames(probe_png(fewer))[0].size
    silent = [0.0] * 12
    silent[5] = 1.0
    first_only = measured(means=silent, without_first=np.zeros((8, 12)))
    rows, columns = frames(probe_png(result_of([first_only])))
    assert rows.size
    assert np.diff(np.unique(columns)).max() < 100  # without the first token nothing is left
