"""Mean and covariance of features that arrive in batches, on any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureStatistics:
    """Running count, mean and scatter of D-dimensional features, in float64.

    The scatter is the sum of outer products about the mean, which avoids cancellation for features far from zero.
    Merged parts equal one pass up to rounding (Chan, Golub, LeVeque 1979).
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """The statistics of features (N, D), on their device."""
        statistics = cls(features.shape[1], features.device)
        statistics.update(features)
        return statistics

    def update(self, features: Tensor) -> None:
        """Add features (N, D) of any float type, from any device.

        Raises:
            ValueError: the shape is not (N, D).
        """
        dim = len(self._mean)
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(f"features of shape {tuple(features.shape)} where (N, {dim}) is needed")
        if len(features):
            features = features.detach().to(self._mean)
            mean = features.mean(dim=0)
            centred = features - mean
            self._absorb(len(features), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of the features of `self` and `other` together, as a new object."""
        merged = FeatureStatistics(len(self._mean), self._mean.device)
        for part in (self, other):
            if part.count:
                merged._absorb(part.count, part._mean.to(merged._mean), part._scatter.to(merged._scatter))
        return merged

    @property
    def mean(self) -> Tensor:
        """(D,) float64.

        Raises:
            ValueError: no features yet.
        """
        self._require(1)
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, normalised by N - 1.

        Raises:
            ValueError: fewer than two features.
        """
        self._require(2)
        return self._scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """`count` () int64, `mean` (D,) and `scatter` (D, D) float64."""
        return {"count": torch.tensor(self.count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> FeatureStatistics:
        """The statistics that `state_dict` describes, on the device of its tensors."""
        statistics = cls(len(state["mean"]), state["mean"].device)
        statistics._absorb(int(state["count"]), state["mean"], state["scatter"])
        return statistics

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total = self.count + count
        gap = mean - self._mean
        self._mean = self._mean + gap * (count / total)
        self._scatter = self._scatter + scatter + torch.outer(gap, gap) * (self.count * count / total)
        self.count = total

    def _require(self, count: int) -> None:
        if self.count < count:
            raise ValueError(f"statistics of {self.count} features; {count} or more are needed")
