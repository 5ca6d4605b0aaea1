"""One Gaussian per domain with a shared covariance, from the stored sums: how typical is a request?

Notation: K domains with n_k prompts, N = sum n_k, d hidden size, m requests; x in R^d is a
normalised feature without its constant.

    mu_k = s_k / n_k      mu_0 = sum s_k / N
    S_w = (sum G_k - sum n_k mu_k mu_k^T) / N      within the domains
    S_0 = sum G_k / N - mu_0 mu_0^T                of all of them together
    typicality(x) = d_0(x) - min_k d_k(x)
    d_k = (x - mu_k)^T S_w^-1 (x - mu_k)           d_0 = (x - mu_0)^T S_0^-1 (x - mu_0)

The relative Mahalanobis distance, negated (Ren et al., arXiv 2106.09022), from the sums that the
ridge regression keeps anyway: nothing new is stored per domain, and it is exact under adding and
removing. Each S is shrunk by :data:`SHRINKAGE` towards its mean eigenvalue, because several views
of one prompt make it thin. Both get a shrinkage of their own size: with one ridge for both, the
difference would live in the K - 1 dimensions between the centroids, and what is measured here, how
far x lies from where prompts of these domains lie at all, would be gone.

Left out on purpose: the background's Gaussian in place of (mu_0, S_0) (measured: it fails).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.router.numerics import (
    Float64Array,
    NotPositiveDefiniteError,
    cholesky_lower,
    mirror_lower,
    triangular_solve,
    zeros_lower,
)
from asr.router.statistics import DomainStatistics

Float32Array = NDArray[np.float32]

#: Share of the mean eigenvalue in each covariance (.03 to .6 differ by less than .01 in AUROC).
SHRINKAGE = 0.1


@dataclass(frozen=True)
class DomainGaussians:
    """The Gaussians of K domains. Factors are float32, also before they are stored.

    Attributes:
        mean: mu_0 (d,).
        within: C_w (d, d) with ``S_w^-1 = C_w C_w^T``: ``(x - mu_0) C_w`` is whitened.
        overall: C_0 (d, d) with ``S_0^-1 = C_0 C_0^T``.
        centroids: (K, d) whitened centroids ``(mu_k - mu_0) C_w``.
    """

    mean: Float32Array
    within: Float32Array
    overall: Float32Array
    centroids: Float32Array

    @classmethod
    def fit(cls, statistics: Sequence[DomainStatistics]) -> DomainGaussians | None:
        """Fit on statistics of features with a constant in the last place (E = d + 1).

        Returns: the Gaussians, or None where there are no statistics, or the prompts do not spread
            at all within the domains (such as one prompt in one view for each).
        """
        if not statistics:
            return None
        counts = np.array([own.prompts for own in statistics], dtype=np.float64)
        sums = np.stack([own.feature_sums.sum(axis=0)[:-1] for own in statistics])
        lower = zeros_lower(statistics[0].dimension)
        for own in statistics:
            lower = own.add_gram_to(lower)
        second = mirror_lower(lower)[:-1, :-1] / counts.sum()
        means = sums / counts[:, None]
        mean = sums.sum(axis=0) / counts.sum()
        within = second - (means.T * (counts / counts.sum())) @ means
        factors = [_whitener(within), _whitener(second - np.outer(mean, mean))]
        if factors[0] is None or factors[1] is None:
            return None
        centroids = (means - mean) @ factors[0]
        return cls(*(np.ascontiguousarray(a, np.float32) for a in (mean, *factors, centroids)))

    def whiten(self, states: Float64Array) -> Float32Array:
        """Return (m, d) whitened features of normalised states (m, d) without the constant."""
        return np.asarray((states.astype(np.float32) - self.mean) @ self.within, np.float32)

    def typicality(self, states: Float64Array, whitened: Float32Array) -> Float64Array:
        """Return (m,): 0 and more for a typical prompt of a domain, very negative far from all.

        Args:
            states: (m, d) normalised states without the constant.
            whitened: (m, d) of :meth:`whiten`.
        """
        overall = (states.astype(np.float32) - self.mean) @ self.overall
        cross = whitened @ self.centroids.T
        norms = np.square(self.centroids).sum(axis=1)
        nearest = np.square(whitened).sum(axis=1) + (norms - 2.0 * cross).min(axis=1)
        found = np.square(overall).sum(axis=1) - nearest
        return np.asarray(found, dtype=np.float64)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the four arrays by name."""
        return {name: getattr(self, name) for name in ("mean", "within", "overall", "centroids")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> DomainGaussians:
        """Make Gaussians from what :meth:`to_tensors` returned.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the shapes do not fit each other.
        """
        names = ("mean", "within", "overall", "centroids")
        mean, within, overall, centroids = (
            np.ascontiguousarray(tensors[name], dtype=np.float32) for name in names
        )
        d = len(mean)
        if within.shape != (d, d) or overall.shape != (d, d) or centroids.shape[1:] != (d,):
            raise ValueError(f"Gaussians of {d} features have factors of other shapes")
        return cls(mean, within, overall, centroids)


def _whitener(covariance: Float64Array) -> Float64Array | None:
    """C (d, d) with ``S^-1 = C C^T`` for the shrunk covariance S; None where it is zero."""
    size = covariance.shape[0]
    spread = float(np.trace(covariance)) / size
    if not spread > np.finfo(np.float64).eps:  # rounding of features of mean square 1
        return None
    shrunk = (1.0 - SHRINKAGE) * covariance
    shrunk.flat[:: size + 1] += SHRINKAGE * spread
    try:
        factor = cholesky_lower(np.asfortranarray(shrunk))
    except NotPositiveDefiniteError:
        return None
    # S = L L^T, so S^-1 = L^-T L^-1 and C = L^-T
    return np.ascontiguousarray(triangular_solve(factor, np.eye(size)).T)
