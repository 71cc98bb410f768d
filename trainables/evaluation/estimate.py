"""A metric with its sampling error.

Every metric here is a function of the samples' empirical distribution. The *influence* of a
sample is the derivative of the metric by that sample's weight (the infinitesimal jackknife, Efron 1981). The standard
error from influences is the limit of a bootstrap's, for the cost of one metric instead of hundreds. All probes of a
study draw the same noise and labels, so samples of two checkpoints form pairs. The error of the checkpoints' difference
comes from the differences of the influences, and is smaller than for independent samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A number and its standard error."""

    value: float
    se: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval (low, high) at this level."""
        half = NormalDist().inv_cdf((1 + level) / 2) * self.se
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Estimate:
    """A metric's value, and the influence (N,) of each sample on it, float64 with mean 0."""

    value: float
    influence: Tensor

    @property
    def se(self) -> float:
        """The standard error of the value; NaN for fewer than two samples."""
        return float(self.influence.std() / len(self.influence) ** 0.5)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval (low, high) of the metric for this number of samples.

        A Frechet distance falls with the number of samples; `frechet.Target.limit` estimates its limit.
        """
        return Measured(self.value, self.se).interval(level)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two metrics whose samples were drawn in pairs.

        Raises:
            ValueError: the numbers of samples differ.
        """
        if len(self.influence) != len(other.influence):
            raise ValueError(f"{len(self.influence)} and {len(other.influence)} samples do not pair")
        return Estimate(self.value - other.value, self.influence - other.influence)

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> Tensor:
        """Values (replicates,) of the metric for bootstrap resamples, to first order."""
        chance = torch.Generator().manual_seed(seed)
        influence = self.influence.cpu()
        drawn = torch.randint(len(influence), (replicates, len(influence)), generator=chance)
        return self.value + influence[drawn].mean(dim=1)
