"""Nearest held-out prompts against a loop over all of them, and who is left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.router.columns import BACKGROUND
from asr.router.neighbours import LeftOut, Neighbours, reference_rows, unit_rows

WIDTH = 6


def block(seed: int, prompts: int, views: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((prompts, views, WIDTH)).astype(np.float32)


@pytest.fixture
def blocks() -> dict[int, np.ndarray]:
    return {0: block(0, 7), 1: block(1, 2), BACKGROUND: block(2, 5)}


def test_mean_of_the_largest_cosines(blocks: dict[int, np.ndarray]) -> None:
    made = Neighbours.fit(blocks, 4)
    assert made is not None
    probes = unit_rows(block(9, 11, 1)[:, 0])
    for owner, rows in blocks.items():
        flat = rows.reshape(-1, WIDTH).astype(np.float64)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        cosines = np.sort(probes @ flat.T, axis=1)[:, -4:]
        np.testing.assert_allclose(
            made.similarity(probes, owner),
            cosines.mean(axis=1),
            atol=2e-3,  # stored in float16
        )
    assert (made.similarity(probes, 5) == 0).all()  # a class without references


def test_a_prompt_is_not_its_own_neighbour(blocks: dict[int, np.ndarray]) -> None:
    made = Neighbours.fit(blocks, 2)
    assert made is not None
    own = blocks[0].reshape(-1, WIDTH)
    prompts = np.repeat(np.arange(7), 3)
    found = made.similarity(unit_rows(own), 0, LeftOut(0, prompts))
    for prompt in range(7):
        kept = {**blocks, 0: np.delete(blocks[0], prompt, axis=0)}
        without = Neighbours.fit(kept, 2)
        assert without is not None
        rows = prompts == prompt
        expected = without.similarity(unit_rows(own[rows]), 0)
        np.testing.assert_allclose(found[rows], expected, atol=1e-6)
    # of another class everybody counts
    np.testing.assert_array_equal(
        made.similarity(unit_rows(own), 1, LeftOut(0, prompts)), made.similarity(unit_rows(own), 1)
    )


def test_the_only_prompt_of_a_domain_has_no_neighbours() -> None:
    made = Neighbours.fit({0: block(0, 1)}, 10)
    assert made is not None
    rows = unit_rows(block(0, 1)[0])
    assert (made.similarity(rows, 0, LeftOut(0, np.zeros(3, dtype=np.int64))) == 0).all()
    assert (made.similarity(rows, 0) > 0).any()
    assert Neighbours.fit({0: block(0, 0)}, 10) is None


@given(prompts=st.integers(0, 40), views=st.integers(1, 7), most=st.integers(7, 60))
def test_references_are_spread_over_prompts_and_views(prompts: int, views: int, most: int) -> None:
    rows = reference_rows(prompts, views, most)
    assert len(rows) <= most
    assert len(set(rows.tolist())) == len(rows)
    if prompts * views <= most:
        assert len(rows) == prompts * views
    counts = np.bincount(rows // views, minlength=prompts)[: min(prompts, most)]
    assert len(set(counts.tolist())) <= 1  # every prompt equally often
    if prompts:
        used = np.bincount(rows % views, minlength=views)
        assert used.max() - used.min() <= max(1, len(rows) // min(prompts, most))


def test_tensors_round_trip_and_refusal(blocks: dict[int, np.ndarray]) -> None:
    made = Neighbours.fit(blocks, 3)
    assert made is not None
    again = Neighbours.from_tensors(made.to_tensors(), 3)
    np.testing.assert_array_equal(again.units, made.units)
    np.testing.assert_array_equal(again.owners, made.owners)
    with pytest.raises(ValueError, match="do not fit"):
        Neighbours.from_tensors({**made.to_tensors(), "owners": made.owners[:-1]}, 3)
