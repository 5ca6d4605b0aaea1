"""The feature map: pooled hidden states to the features that the ridge regression sees.

Notation: m rows, d hidden size, E feature dimension.

    x   = (h - mean(h)) / sqrt(var(h) + eps)      LayerNorm without parameters, over the d entries
    x'  = [x, 1]                                  the constant gives the regression its offset
    phi = x'                                      E = d + 1, without expansion (the default)
    phi = relu(P x')                              P (E, d + 1), fixed and Gaussian, with expansion

``|x'|^2`` is d + 1 for every input, so ``trace(Gram) / E`` is the (weighted) number of rows without
expansion, and about half of it with: P is scaled by 1 / sqrt(d + 1), so that P x' has unit variance
and relu keeps half of the second moment. A ridge stated relative to that trace means the same
thing in every model.

Source of the expansion: Any-SSR (arXiv 2503.13575). Its released code leaves the activation out,
which adds no rank; it is kept here. Left out on purpose: learned normalisation parameters (the
final norm of the base belongs to its last layer, not to layer L), and a constant beside the
expanded features (P sees the constant already).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from asr.errors import RouterError
from asr.router.numerics import Float64Array

#: Seed of the expansion where none is given. Constant, so that two models can be merged.
DEFAULT_SEED = 20_250_313

#: Added to the variance. Pooled states have variances of 1e-3 and more; far below that the row is
#: constant, and the map returns zeros for it instead of amplified rounding.
LAYER_NORM_EPS = 1e-8

#: ``expansion_hash`` of a map without expansion.
NO_EXPANSION = "none"


class FeatureMap:
    """Maps pooled hidden states (m, d) to float64 features (m, E).

    The expansion is drawn from numpy's Philox bit generator: counter-based, the same on every
    platform and device, which torch's generators are not. numpy may still change how it turns bits
    into normals, so the tensor itself is stored with a router and its hash is part of the feature
    contract.
    """

    def __init__(self, hidden_size: int, expansion: int = 0, seed: int = DEFAULT_SEED) -> None:
        """Make the map for a hidden size.

        Args:
            hidden_size: d, at least 1.
            expansion: E of the ReLU expansion; 0 for none.
            seed: seed of the expansion (at least 0); without expansion it changes nothing.

        Raises:
            RouterError: a size or the seed is out of range.
        """
        if hidden_size < 1:
            raise RouterError(f"hidden_size is {hidden_size}; it must be 1 or more")
        if expansion < 0:
            raise RouterError(f"router.expansion is {expansion}; use 0 for none, or 2048 to 10000")
        if seed < 0:
            raise RouterError(f"router.expansion_seed is {seed}; it must be 0 or more")
        self.hidden_size = hidden_size
        self.expansion = expansion
        self.seed = seed
        self._matrix: Float64Array | None = None
        if expansion > 0:
            generator = np.random.Generator(np.random.Philox(seed))
            self._matrix = generator.standard_normal((expansion, hidden_size + 1))
            self._matrix /= np.sqrt(hidden_size + 1.0)
        self.expansion_hash = _hash(self._matrix)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, np.ndarray], hidden_size: int, seed: int = DEFAULT_SEED
    ) -> FeatureMap:
        """Make a map from the tensors of :meth:`to_tensors`; the expansion is not drawn again.

        Raises:
            RouterError: the expansion tensor does not fit the hidden size.
        """
        made = cls(hidden_size, expansion=0, seed=seed)
        matrix = tensors.get("expansion")
        if matrix is not None:
            if matrix.ndim != 2 or matrix.shape[1] != hidden_size + 1:
                raise RouterError(
                    f"the expansion tensor has shape {matrix.shape}; a hidden size of {hidden_size}"
                    f" needs (E, {hidden_size + 1}); run asr train CONFIG --out MODEL --resume"
                    " to derive it again"
                )
            made._matrix = np.ascontiguousarray(matrix, dtype=np.float64)
            made.expansion = matrix.shape[0]
            made.expansion_hash = _hash(made._matrix)
        return made

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors that define the map: ``expansion`` (E, d + 1), or nothing."""
        return {} if self._matrix is None else {"expansion": self._matrix}

    @property
    def dimension(self) -> int:
        """E: the number of features of a row."""
        return self.expansion if self.expansion > 0 else self.hidden_size + 1

    def __call__(self, pooled: ArrayLike) -> Float64Array:
        """Map pooled states to features.

        Args:
            pooled: (..., d), any real dtype; usually (m, d), or (n, V, d) for V views of n prompts.
        Returns: (..., E) float64.

        Raises:
            RouterError: the last dimension is not d, or an entry is not finite (names the row).
        """
        return self.expand(self.normalise(pooled))

    def normalise(self, pooled: ArrayLike) -> Float64Array:
        """Return (..., d) float64 normalised states, without the constant.

        Raises:
            RouterError: as the call.
        """
        states = np.asarray(pooled, dtype=np.float64)
        if states.ndim < 1 or states.shape[-1] != self.hidden_size:
            raise RouterError(
                f"pooled features have shape {states.shape}; this router was made for a hidden size"
                f" of {self.hidden_size}; use the base model it was made with"
            )
        require_finite(states)
        mean = states.mean(axis=-1, keepdims=True)
        centred = states - mean
        variance = np.mean(np.square(centred), axis=-1, keepdims=True)
        normalised: Float64Array = centred / np.sqrt(variance + LAYER_NORM_EPS)
        return normalised

    def expand(self, normalised: Float64Array) -> Float64Array:
        """Return (..., E) features of normalised states (..., d): the constant, the expansion."""
        features = np.empty((*normalised.shape[:-1], self.hidden_size + 1), dtype=np.float64)
        features[..., :-1] = normalised
        features[..., -1] = 1.0
        if self._matrix is None:
            return features
        expanded: Float64Array = features @ self._matrix.T
        return np.maximum(expanded, 0.0, out=expanded)


def require_finite(states: np.ndarray) -> None:
    """Check that every entry is finite.

    Raises:
        RouterError: an entry is not; the message names the first such row.
    """
    if np.isfinite(states).all():
        return
    bad = np.argwhere(~np.isfinite(states).all(axis=-1))
    first = ", ".join(str(int(index)) for index in bad[0])
    raise RouterError(
        f"pooled features are not finite in row {first or 0} ({len(bad)} row(s) in all); the base"
        " model overflowed: load it in bfloat16 or float32 instead of float16"
    )


def _hash(matrix: Float64Array | None) -> str:
    """sha256 (hex) of the little-endian float64 bytes of the expansion, in C order."""
    if matrix is None:
        return NO_EXPANSION
    return hashlib.sha256(np.ascontiguousarray(matrix, dtype="<f8").data).hexdigest()
