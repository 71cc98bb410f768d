"""Precision and recall of generated images by nearest-neighbour manifolds (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def precision_recall(real: Tensor, fake: Tensor, k: int = 3, batch_size: int = 1000) -> tuple[float, float]:
    """The share of fakes within the real manifold, and of reals within the fakes' manifold.

    A manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.

    Args:
        real: (N, D) features, float32 or float64.
        fake: (M, D) features of the same type and device.
        batch_size: rows of distances held at a time.

    Raises:
        ValueError: a set has no k neighbours.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{len(real)} real and {len(fake)} fake features; more than k = {k} of each are needed")
    # Distances come from products: near the origin they round least.
    centre = real.mean(dim=0)
    real, fake = real - centre, fake - centre
    return _share_within(real, fake, k, batch_size), _share_within(fake, real, k, batch_size)


def _share_within(manifold: Tensor, points: Tensor, k: int, batch_size: int) -> float:
    # The nearest of a point's k + 1 neighbours is the point itself.
    radii = torch.cat([torch.cdist(b, manifold).kthvalue(k + 1).values for b in manifold.split(batch_size)])
    within = [(torch.cdist(b, manifold) <= radii).any(dim=1) for b in points.split(batch_size)]
    return torch.cat(within).double().mean().item()
