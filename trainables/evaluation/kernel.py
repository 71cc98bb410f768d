"""Kernel Inception Distance (Binkowski et al. 2018): squared maximum mean discrepancy by a cubic kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainables.evaluation.estimate import Estimate

BLOCK = 2048  # rows of a kernel matrix at a time


def kernel_estimate(features: Tensor, reference: Tensor) -> Estimate:
    """The unbiased estimate from all pairs. The usual mean over random subsets estimates the same with more noise.

    Args:
        features, reference: (N, D) and (M, D), any float type; computed in float64 on the device of `features`.

    Raises:
        ValueError: fewer than two rows, or dimensions that differ.
    """
    features = features.double()
    reference = reference.to(features)
    _check(features, reference, 2)
    n, m = len(features), len(reference)
    own = (_row_sums(features, features) - _kernel_of(features, features)) / (n - 1)  # (N,)
    crossed = _row_sums(features, reference) / m  # (N,)
    others = float(_row_sums(reference, reference).sum() - _kernel_of(reference, reference).sum()) / (m * (m - 1))
    value = float(own.mean()) + others - 2 * float(crossed.mean())
    return Estimate(value, 2 * (own - own.mean()) - 2 * (crossed - crossed.mean()))


def kernel_distance(
    features: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of both sets, as torch-fidelity and clean-fid compute it.

    The subsets are those of torch-fidelity (which uses this seed) and of clean-fid (which uses NumPy's global state).

    Raises:
        ValueError: fewer rows than a subset has, or dimensions that differ.
    """
    features = features.double()
    reference = reference.to(features)
    _check(features, reference, max(2, subset_size))
    chance = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        mine = features[torch.from_numpy(chance.choice(len(features), subset_size, replace=False))]
        theirs = reference[torch.from_numpy(chance.choice(len(reference), subset_size, replace=False))]
        values.append(kernel_estimate(mine, theirs).value)
    return float(np.mean(values)), float(np.std(values))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_of(a: Tensor, b: Tensor) -> Tensor:
    """The kernel (N,) of each row of `a` with the same row of `b`."""
    return ((a * b).sum(dim=1) / a.shape[1] + 1) ** 3


def _row_sums(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([_kernel(part, b).sum(dim=1) for part in a.split(BLOCK)])


def _check(features: Tensor, reference: Tensor, least: int) -> None:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"shapes {tuple(features.shape)} and {tuple(reference.shape)} are not (N, D) and (M, D)")
    if min(len(features), len(reference)) < least:
        raise ValueError(f"{len(features)} and {len(reference)} features; each must have at least {least}")
