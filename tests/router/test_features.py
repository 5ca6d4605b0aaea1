from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from asr.errors import RouterError
from asr.router import DEFAULT_SEED, FeatureMap


def test_layer_norm_and_constant() -> None:
    pooled = np.array([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]], dtype=np.float32)
    features = FeatureMap(4)(pooled)
    assert features.dtype == np.float64
    centred = np.array([-2.0, -1.0, 0.0, 3.0])
    np.testing.assert_allclose(features[0, :4], centred / np.sqrt(3.5 + 1e-8), rtol=1e-15)
    np.testing.assert_array_equal(features[1], [0, 0, 0, 0, 1])  # a constant row has no direction
    assert features[0, 4] == 1.0


def test_squared_norm_is_dimension() -> None:
    features = FeatureMap(64)(np.random.default_rng(0).standard_normal((10, 64)))
    np.testing.assert_allclose((features**2).sum(axis=1), 65.0, rtol=1e-6)


def test_scale_and_offset_do_not_matter() -> None:
    pooled = np.random.default_rng(0).standard_normal((3, 16))
    feature_map = FeatureMap(16, expansion=40)
    np.testing.assert_allclose(feature_map(pooled), feature_map(7.0 * pooled + 3.0), atol=1e-6)


def test_expansion_is_relu_of_philox_gaussian() -> None:
    feature_map = FeatureMap(6, expansion=20, seed=3)
    matrix = np.random.Generator(np.random.Philox(3)).standard_normal((20, 7)) / np.sqrt(7.0)
    assert feature_map.expansion_hash == hashlib.sha256(matrix.astype("<f8").tobytes()).hexdigest()
    pooled = np.random.default_rng(0).standard_normal((4, 6))
    expected = np.maximum(FeatureMap(6)(pooled) @ matrix.T, 0.0)
    np.testing.assert_allclose(feature_map(pooled), expected, rtol=1e-13, atol=1e-15)
    assert feature_map.dimension == 20


def test_default_expansion_never_changes() -> None:
    """A changed draw would make old statistics unusable; then the seed must change as well."""
    expected = "22b182a78c0f"
    assert FeatureMap(8, expansion=16).expansion_hash[:12] == expected
    assert DEFAULT_SEED == 20_250_313


def test_without_expansion() -> None:
    feature_map = FeatureMap(8)
    assert (feature_map.dimension, feature_map.expansion_hash) == (9, "none")
    assert feature_map.to_tensors() == {}


def test_views_map_like_rows() -> None:
    pooled = np.random.default_rng(0).standard_normal((5, 3, 8))
    feature_map = FeatureMap(8)
    views = feature_map(pooled)
    assert views.shape == (5, 3, 9)
    np.testing.assert_array_equal(views.reshape(15, 9), feature_map(pooled.reshape(15, 8)))


def test_tensors_round_trip() -> None:
    feature_map = FeatureMap(8, expansion=5, seed=1)
    read = FeatureMap.from_tensors(feature_map.to_tensors(), 8, 1)
    assert read.expansion_hash == feature_map.expansion_hash
    pooled = np.random.default_rng(0).standard_normal((2, 8))
    np.testing.assert_array_equal(read(pooled), feature_map(pooled))
    with pytest.raises(RouterError, match=r"shape \(5, 9\); a hidden size of 9 needs \(E, 10\)"):
        FeatureMap.from_tensors(feature_map.to_tensors(), 9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_names_the_row(value: float) -> None:
    pooled = np.zeros((6, 4))
    pooled[[2, 5], 1] = value
    message = (
        "pooled features are not finite in row 2 (2 row(s) in all); the base model overflowed:"
        " load it in bfloat16 or float32 instead of float16"
    )
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        FeatureMap(4)(pooled)


def test_non_finite_names_prompt_and_view() -> None:
    pooled = np.zeros((6, 2, 4))
    pooled[3, 1, 0] = np.nan
    with pytest.raises(RouterError, match="in row 3, 1 "):
        FeatureMap(4)(pooled)


def test_wrong_hidden_size() -> None:
    with pytest.raises(RouterError, match=r"shape \(2, 5\); this router was made for a hidden si"):
        FeatureMap(4)(np.zeros((2, 5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "hidden_size is 0"),
        ((4, -1), "router.expansion is -1; use 0 for none"),
        ((4, 2, -3), "router.expansion_seed is -3"),
    ],
)
def test_bad_arguments(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(RouterError, match=message):
        FeatureMap(*arguments)
