"""The real images, as a detector sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.evaluation.detectors import Detector
from trainables.evaluation.estimate import Estimate
from trainables.evaluation.frechet import Target
from trainables.evaluation.inception_score import inception_score_estimate
from trainables.evaluation.kernel_distance import kernel_estimate
from trainables.evaluation.precision_recall import precision_recall_estimates
from trainables.evaluation.statistics import FeatureStatistics
from trainables.spec import Judged

KEPT = 10_000  # features, spread evenly over the images, for what compares samples one by one; ADM keeps as many


class Reference:
    """What samples are compared with: the Gaussian of all real images' features, and some of the features."""

    def __init__(self, statistics: FeatureStatistics, features: Tensor):
        self.statistics, self.features = statistics, features
        self.target = Target(statistics.mean, statistics.covariance)

    @classmethod
    def of(cls, images: Tensor, detector: Detector, batch_size: int = 256) -> Reference:
        """Of real images (N, 3, H, W) uint8 through a detector."""
        statistics, kept = FeatureStatistics(detector.feature_dim), []
        stride = -(-len(images) // KEPT)
        for number, batch in enumerate(images.split(batch_size)):
            features = detector(batch)[0].cpu()
            statistics.update(features)
            kept.append(features[-number * batch_size % stride :: stride])
        return cls(statistics, torch.cat(kept))

    def state_dict(self) -> dict[str, Tensor]:
        """Those of the statistics, and `features` (M, D)."""
        return {**self.statistics.state_dict(), "features": self.features}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Reference:
        """What `state_dict` described."""
        return cls(FeatureStatistics.from_state_dict(state), state["features"])

    def judge(self, features: Tensor, probs: Tensor, metrics: tuple[Judged, ...]) -> dict[Judged, Estimate]:
        """Metrics of samples with features (N, D) and class probabilities (N, K), the classes spread evenly over the
        rows."""
        found: dict[Judged, Estimate] = {}
        if "fid" in metrics:
            found["fid"] = self.target.estimate(features)
        if "is" in metrics:
            found["is"] = inception_score_estimate(probs)
        if "kid" in metrics:
            found["kid"] = kernel_estimate(features, self.features)
        if "precision" in metrics or "recall" in metrics:
            found["precision"], found["recall"] = precision_recall_estimates(self.features, features)
        return {metric: found[metric] for metric in metrics}
