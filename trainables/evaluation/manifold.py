"""Precision and recall of generated images by nearest-neighbour manifolds (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.evaluation.estimate import Estimate
from trainables.evaluation.frechet import Array

BLOCK = 1000  # rows of a distance matrix at a time


@torch.no_grad()
def precision_recall(real: Array, fake: Array, k: int = 3) -> tuple[float, float]:
    """Precision, the share of fakes within the real manifold, and recall, the share of reals within the fake manifold.

    A manifold is the union of balls around its points, each of which reaches to the point's k-th nearest neighbour.

    Args:
        real, fake: (M, D) and (N, D) features, tensors or NumPy arrays of any float type. Computed in float64 on the
            device of `real`.

    Raises:
        ValueError: there are k rows or fewer, or the dimensions differ.
    """
    precision, recall = precision_recall_estimates(torch.as_tensor(real), torch.as_tensor(fake), k)
    return precision.value, recall.value


def precision_recall_estimates(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Estimate, Estimate]:
    """`precision_recall` with standard errors. They cover the sampling of the points that are counted (fakes for the
    precision, reals for the recall), not that of the balls."""
    real = real.double()
    fake = fake.to(real)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"shapes {tuple(real.shape)} and {tuple(fake.shape)} are not (M, D) and (N, D)")
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{len(real)} real and {len(fake)} fake features; more than k = {k} of each are needed")
    # cdist computes distances from products, which round least near the origin.
    centre = real.mean(dim=0)
    real, fake = real - centre, fake - centre
    return _share_within(real, fake, k), _share_within(fake, real, k)


def _share_within(manifold: Tensor, points: Tensor, k: int) -> Estimate:
    # The nearest of a point's k + 1 neighbours is the point itself.
    radii = torch.cat([torch.cdist(part, manifold).kthvalue(k + 1).values for part in manifold.split(BLOCK)])
    within = torch.cat([(torch.cdist(part, manifold) <= radii).any(dim=1) for part in points.split(BLOCK)]).double()
    share = within.mean()
    return Estimate(share.item(), within - share)
