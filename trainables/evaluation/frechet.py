"""Frechet distance between two Gaussians: FID where the features are those of the FID Inception."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array, *, root1: Tensor | None = None) -> float:
    """|mu1 - mu2|^2 + Tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^1/2), in float64 (Heusel et al. 2017).

    With sigma = R R' from a symmetric eigendecomposition, the trace of the root is the sum of the singular values of
    R1' R2. Those round like sigma itself; the roots of the eigenvalues of sigma1 sigma2 would lose half the digits of
    small ones. Computed where `mu1` is.

    Args:
        mu1, mu2: (D,) means.
        sigma1, sigma2: (D, D) covariances, symmetric; of any rank.
        root1: `root(sigma1)`, where many are compared with one.

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

    trace_of_root = torch.linalg.svdvals((root(sigma1) if root1 is None else root1).T @ root(sigma2)).sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def root(sigma: Tensor) -> Tensor:
    """R (D, rank) with R R' = sigma, for a symmetric sigma (D, D) without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(sigma)
    # At or below this, negative ones too, an eigenvalue is the rounding of zero; its root would not be small.
    noise = values.abs().amax() * len(values) * torch.finfo(values.dtype).eps
    genuine = values > noise
    return vectors[:, genuine] * values[genuine].sqrt()
