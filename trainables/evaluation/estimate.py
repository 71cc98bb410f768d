"""A metric with its sampling error.

Every metric here is a function of a sample's distribution, and comes with its *influence*: how much each sample's own
weight would move it (the infinitesimal jackknife, Efron 1981). That is what a bootstrap converges to, at the price of
the metric itself rather than of hundreds of matrix roots; and as all probes of a study draw the same noise and labels,
influences pair sample by sample, so that two checkpoints' difference has an error of its own, smaller than theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A number, and its standard error."""

    value: float
    se: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where it lies, at this level."""
        half = NormalDist().inv_cdf((1 + level) / 2) * self.se
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Estimate:
    """A metric's value, and the influence of each sample on it: (N,) float64 with mean 0."""

    value: float
    influence: Tensor

    @property
    def se(self) -> float:
        """The standard error of the value over samples of this size; NaN for fewer than two."""
        return float(self.influence.std() / len(self.influence) ** 0.5)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the metric of such samples lies, at this level. A Frechet distance falls as samples grow, and its limit
        lies lower: `frechet.Target.limit`."""
        return Measured(self.value, self.se).interval(level)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two metrics of samples that were drawn in pairs.

        Raises:
            ValueError: they are not as many.
        """
        if len(self.influence) != len(other.influence):
            raise ValueError(f"{len(self.influence)} and {len(other.influence)} samples do not pair")
        return Estimate(self.value - other.value, self.influence - other.influence)

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> Tensor:
        """(replicates,) values as of samples drawn from this one with replacement, to first order."""
        chance = torch.Generator().manual_seed(seed)
        influence = self.influence.cpu()
        drawn = torch.randint(len(influence), (replicates, len(influence)), generator=chance)
        return self.value + influence[drawn].mean(dim=1)
