from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import RouterError
from asr.router import DomainStatistics


def features(seed: int, prompts: int, views: int, dimension: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((prompts, views, dimension))


def direct_gram(views: np.ndarray) -> np.ndarray:
    rows = views.reshape(-1, views.shape[2])
    return rows.T @ rows / views.shape[1]


@given(
    prompts=st.integers(0, 30),
    views=st.integers(1, 4),
    dimension=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equal_to_the_definition(prompts: int, views: int, dimension: int, seed: int) -> None:
    data = features(seed, prompts, views, dimension)
    statistics = DomainStatistics(dimension).update(data)
    assert statistics.prompts == prompts
    assert statistics.rows == prompts * views
    assert statistics.is_factored == (prompts * views < dimension)
    np.testing.assert_allclose(statistics.gram(), direct_gram(data), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(statistics.gram(), statistics.gram().T)
    expected = data.mean(axis=1).sum(axis=0)
    np.testing.assert_allclose(statistics.feature_sums[0], expected, rtol=1e-12, atol=1e-12)


@given(cuts=st.lists(st.integers(0, 30), max_size=5), dimension=st.sampled_from([5, 40, 200]))
@settings(max_examples=40, deadline=None)
def test_batches_do_not_matter(cuts: list[int], dimension: int) -> None:
    data = features(1, 30, 2, dimension)
    whole = DomainStatistics(dimension).update(data)
    parts = DomainStatistics(dimension)
    edges = [0, *sorted(cuts), 30]
    for start, stop in pairwise(edges):
        parts.update(data[start:stop])
    assert (parts.prompts, parts.rows) == (whole.prompts, whole.rows)
    assert parts.is_factored == whole.is_factored
    np.testing.assert_array_equal(parts.feature_sums, whole.feature_sums)
    if whole.is_factored:
        np.testing.assert_array_equal(parts.factor(), whole.factor())
    np.testing.assert_allclose(parts.gram(), whole.gram(), rtol=1e-12, atol=1e-12)


@given(first=st.integers(0, 25), second=st.integers(0, 25), dimension=st.sampled_from([4, 30, 90]))
@settings(max_examples=40, deadline=None)
def test_addition_joins_prompts(first: int, second: int, dimension: int) -> None:
    data = features(2, first + second, 2, dimension)
    left = DomainStatistics(dimension).update(data[:first])
    right = DomainStatistics(dimension).update(data[first:])
    before = left.gram()
    total, whole = left + right, DomainStatistics(dimension).update(data)
    assert (total.prompts, total.rows, total.is_factored) == (
        whole.prompts,
        whole.rows,
        whole.is_factored,
    )
    np.testing.assert_allclose(total.gram(), whole.gram(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total.feature_sums, whole.feature_sums, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((right + left).gram(), total.gram(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(left.gram(), before)  # the operands are left alone


@given(prompts=st.integers(1, 60), dimension=st.sampled_from([3, 20, 50]))
@settings(max_examples=40, deadline=None)
def test_factor_reproduces_the_gram(prompts: int, dimension: int) -> None:
    statistics = DomainStatistics(dimension).update(features(3, prompts, 1, dimension))
    factor = statistics.factor()
    assert factor.shape[0] <= max(prompts, dimension)
    np.testing.assert_allclose(
        factor.T @ factor, statistics.gram(), rtol=1e-11, atol=1e-11 * prompts
    )


def test_factor_of_a_singular_gram() -> None:
    data = features(4, 50, 1, 3) @ np.random.default_rng(0).standard_normal((3, 12))
    statistics = DomainStatistics(12).update(data)
    factor = statistics.factor()
    assert factor.shape == (3, 12)
    np.testing.assert_allclose(factor.T @ factor, statistics.gram(), rtol=1e-10, atol=1e-10)


def test_views_weigh_one_prompt() -> None:
    data = features(5, 8, 1, 6)
    once = DomainStatistics(6).update(data)
    thrice = DomainStatistics(6).update(np.repeat(data, 3, axis=1))
    assert once.prompts == thrice.prompts == 8
    np.testing.assert_allclose(once.gram(), thrice.gram(), rtol=1e-13)
    np.testing.assert_allclose(once.feature_sums, thrice.feature_sums, rtol=1e-13)


def test_prototypes() -> None:
    data = features(6, 5, 2, 4)
    statistics = DomainStatistics(4, prototypes=3).update(data, [0, 2, 2, 0, 2])
    np.testing.assert_array_equal(statistics.prototype_prompts, [2, 0, 3])
    means = data.mean(axis=1)
    np.testing.assert_allclose(statistics.feature_sums[0], means[[0, 3]].sum(axis=0))
    np.testing.assert_allclose(statistics.feature_sums[2], means[[1, 2, 4]].sum(axis=0))
    statistics.update(data, 1)
    np.testing.assert_array_equal(statistics.prototype_prompts, [2, 5, 3])


def test_smaller_form_is_kept() -> None:
    dimension = 100
    few = DomainStatistics(dimension).update(features(7, 10, 1, dimension))
    many = DomainStatistics(dimension).update(features(7, 400, 1, dimension))
    overhead = few.feature_sums.nbytes + few.prototype_prompts.nbytes
    assert few.nbytes == 10 * dimension * 8 + overhead
    assert many.nbytes == dimension * dimension * 8 + overhead


def test_view_counts_are_remembered() -> None:
    statistics = DomainStatistics(4).update(features(8, 2, 3, 4)).update(features(8, 2, 1, 4))
    assert statistics.view_counts == (1, 3)


@pytest.mark.parametrize("prompts", [3, 40])
def test_tensors_round_trip(prompts: int) -> None:
    statistics = DomainStatistics(20, prototypes=2, kind="background")
    statistics.update(features(9, prompts, 2, 20), np.arange(prompts) % 2)
    read = DomainStatistics.from_tensors(*statistics.to_tensors())
    assert (read.kind, read.rows, read.view_counts) == ("background", prompts * 2, (2,))
    np.testing.assert_array_equal(read.gram(), statistics.gram())
    np.testing.assert_array_equal(read.feature_sums, statistics.feature_sums)
    np.testing.assert_array_equal(read.prototype_prompts, statistics.prototype_prompts)
    more = features(10, 30, 2, 20)
    np.testing.assert_array_equal(read.update(more).gram(), statistics.update(more).gram())


def test_spoiled_tensors() -> None:
    tensors, metadata = DomainStatistics(4).update(features(0, 9, 1, 4)).to_tensors()
    with pytest.raises(RouterError, match="the statistics do not fit each other: 9 rows of 4"):
        DomainStatistics.from_tensors({**tensors, "gram": np.zeros((3, 4))}, metadata)
    with pytest.raises(RouterError, match="lack or spoil 'rows'"):
        DomainStatistics.from_tensors(tensors, {"kind": "domain", "views": []})
    with pytest.raises(RouterError, match=r"unknown kind of statistics 'domian' \(did you mean"):
        DomainStatistics.from_tensors(tensors, {**metadata, "kind": "domian"})


def test_non_finite_adds_nothing() -> None:
    data = features(0, 5, 2, 4)
    data[3, 1, 2] = np.nan
    statistics = DomainStatistics(4)
    with pytest.raises(RouterError, match=r"^features of prompt 3 are not finite; nothing was add"):
        statistics.update(data)
    assert (statistics.prompts, statistics.rows) == (0, 0)
    assert not statistics.feature_sums.any()


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (DomainStatistics(5), r"dimension \(4 and 5\)"),
        (DomainStatistics(4, kind="background"), r"kind \(domain and background\)"),
        (DomainStatistics(4, prototypes=2), r"prototypes \(1 and 2\)"),
    ],
)
def test_what_cannot_be_added(other: DomainStatistics, field: str) -> None:
    with pytest.raises(RouterError, match=f"^statistics differ in {field} and cannot be added"):
        DomainStatistics(4) + other


def test_shapes_that_do_not_fit() -> None:
    statistics = DomainStatistics(4)
    with pytest.raises(ValueError, match=r"need \(n, V, 4\)"):
        statistics.update(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"0 \.\.\. 0"):
        statistics.update(np.zeros((3, 1, 4)), 1)
    with pytest.raises(ValueError, match=r"integer or \(3,\) integers"):
        statistics.update(np.zeros((3, 1, 4)), [0, 0])
    with pytest.raises(ValueError, match="must be >= 1"):
        DomainStatistics(0)
