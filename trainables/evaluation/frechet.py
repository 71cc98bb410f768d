"""Frechet distance between two Gaussians: FID where the features are those of the FID Inception."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trainables.evaluation.estimate import Estimate, Measured
from trainables.evaluation.statistics import FeatureStatistics

Array = Tensor | np.ndarray


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """|mu1 - mu2|^2 + Tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^1/2), in float64 (Heusel et al. 2017).

    With sigma = R R', the trace of the root is the sum of the singular values of R1' R2. They are computed as roots of
    the eigenvalues of a Gram matrix if its rounding changes the distance by less than 1e-7 of itself, else by a
    singular value decomposition, which takes twice as long and is exact for small values. Computed on the device of
    `mu1`.

    Args:
        mu1, mu2: (D,) means, tensors or NumPy arrays.
        sigma1, sigma2: (D, D) covariances, symmetric, of any rank.

    Raises:
        ValueError: shapes disagree, or a value is not finite.
    """
    mu1 = torch.as_tensor(mu1, dtype=torch.float64)
    sigma1, mu2, sigma2 = (torch.as_tensor(array).to(mu1) for array in (sigma1, mu2, sigma2))
    shapes = [tuple(array.shape) for array in (mu1, sigma1, mu2, sigma2)]
    dim = mu1.numel()
    if dim == 0 or shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"shapes {shapes} are not those of two means (D,) and covariances (D, D)")
    if not all(bool(array.isfinite().all()) for array in (mu1, sigma1, mu2, sigma2)):
        raise ValueError("a mean or a covariance is not finite")
    return _distance(mu1, root(sigma1), mu2, root(sigma2))


def _distance(mu1: Tensor, root1: Tensor, mu2: Tensor, root2: Tensor) -> float:
    """`frechet_distance` from roots (D, rank) of the covariances."""
    without_cross = (mu1 - mu2).square().sum() + root1.square().sum() + root2.square().sum()
    product = root1.T @ root2 if root1.shape[1] <= root2.shape[1] else root2.T @ root1
    squares = torch.linalg.eigvalsh(product @ product.T)
    rounding = len(squares) ** 0.5 * torch.finfo(squares.dtype).eps * squares.norm()
    low, cross, high = ((squares + error).clamp(min=0).sqrt().sum() for error in (-rounding, 0, rounding))
    if high - low > 1e-7 * (without_cross - 2 * cross):
        cross = torch.linalg.svdvals(product).sum()
    return max(float(without_cross - 2 * cross), 0.0)


class Target:
    """The Gaussian of the real images' features, with which samples are compared.

    Args:
        mean, covariance: (D,) and (D, D), symmetric, of any rank.
    """

    def __init__(self, mean: Array, covariance: Array):
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.covariance = torch.as_tensor(covariance).to(self.mean)
        self.root = root(self.covariance)

    def distance(self, statistics: FeatureStatistics) -> float:
        """`frechet_distance` between samples' statistics and the target."""
        return _distance(self.mean, self.root, statistics.mean.to(self.mean), root(statistics.covariance.to(self.mean)))

    def estimate(self, features: Tensor) -> Estimate:
        """The distance of features (N, D), with its error. Computed on the target's device.

        The influence of a sample x is 2 (mu - m)' (x - mu) + (x - mu)' (I - T) (x - mu), minus its mean over samples.
        mu is the samples' mean, m the target's, and T the optimal transport map from the samples' Gaussian to the
        target's (the gradient of the Bures distance).
        """
        features = features.to(self.mean)
        mean = features.mean(dim=0)
        centred = features - mean
        influence = (
            2 * centred @ (mean - self.mean) + centred.square().sum(dim=1) - _transported_norms(centred @ self.root)
        )
        return Estimate(self._distance_of(features), influence - influence.mean())

    def limit(self, features: Tensor) -> Measured:
        """The distance for infinitely many samples (FID-infinity; Chong, Forsyth 2020), from features (N, D).

        Classes must be spread evenly over the rows. The bias falls as 1 / N once N is well over D, so half-samples have
        twice the bias of the whole. The mean over both halves has the same first-order error as the whole, because the
        halves contain all rows. The difference to an extrapolation with quarters is added to the error.

        Raises:
            ValueError: fewer than eight features.
        """
        features = features.to(self.mean)
        if len(features) < 8:
            raise ValueError(f"{len(features)} features; eight or more are needed to extrapolate")
        whole = self.estimate(features)
        half, quarter = (sum(map(self._distance_of, features.tensor_split(parts))) / parts for parts in (2, 4))
        linear = 2 * whole.value - half
        quadratic = (8 * whole.value - 6 * half + quarter) / 3
        return Measured(linear, math.hypot(whole.se, quadratic - linear))

    def _distance_of(self, features: Tensor) -> float:
        """The distance of features (N, D) float64."""
        if len(features) > features.shape[1]:
            return self.distance(FeatureStatistics.of(features))
        mean = features.mean(dim=0)  # centred rows are a root of their covariance
        return _distance(self.mean, self.root, mean, (features - mean).T / max(1, len(features) - 1) ** 0.5)


def _transported_norms(rows: Tensor) -> Tensor:
    """|S^-1/4 y|^2 (N,) of each row y of (N, R), for S = rows' rows / (N - 1), by the smaller of the two Gram
    matrices."""
    scale = len(rows) - 1
    wide = len(rows) <= rows.shape[1]
    values, vectors = torch.linalg.eigh((rows @ rows.T if wide else rows.T @ rows) / scale)
    genuine = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    deviations, vectors = values[genuine].sqrt(), vectors[:, genuine]
    if wide:
        return (vectors.square() * deviations).sum(dim=1) * scale
    return ((rows @ vectors).square() / deviations).sum(dim=1)


def root(sigma: Tensor) -> Tensor:
    """R (D, rank) with R R' = sigma, for a symmetric sigma (D, D) without negative eigenvalues."""
    # Eigenvalues at or below this fraction of the largest are zeros with a rounding error.
    noise = len(sigma) * torch.finfo(sigma.dtype).eps
    triangle, failed = torch.linalg.cholesky_ex(sigma)
    pivots = triangle.diagonal().square()
    if not failed and pivots.amin() > 10 * noise * pivots.amax():  # ten times as fast, for matrices of full rank
        return triangle
    values, vectors = torch.linalg.eigh(sigma)
    genuine = values > noise * values.abs().amax()  # the root of a rounding error would not be small
    return vectors[:, genuine] * values[genuine].sqrt()
