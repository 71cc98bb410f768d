"""The real images, as a detector sees them."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.evaluation.detectors import Detector, Seen
from trainables.evaluation.estimate import Estimate, Measured
from trainables.evaluation.frechet import Target
from trainables.evaluation.inception_score import inception_score_estimate
from trainables.evaluation.kernel_distance import kernel_estimate
from trainables.evaluation.precision_recall import precision_recall_estimates
from trainables.evaluation.statistics import FeatureStatistics
from trainables.spec import Judged

DRAWS = 4  # of real images, for the floor
KEPT = 10_000  # features, spread evenly over the images, for what compares samples one by one; ADM keeps as many


class Reference:
    """What samples are compared with.

    Args:
        state: `mean` (D,) and `covariance` (D, D) float64 of all real images' features; `spatial_mean` and
            `spatial_covariance` where the detector has those; `features` (M, D) of some images where there are images.
    """

    def __init__(self, state: dict[str, Tensor]):
        self.state = state
        self._target = Target(state["mean"], state["covariance"])
        self._spatial: Target | None = None  # its root takes seconds: made when it is asked for
        self._floors: dict[int, Measured] = {}  # by the number of samples

    @classmethod
    def of(cls, images: Tensor, detector: Detector, batch_size: int = 256) -> Reference:
        """Of real images (N, 3, H, W) uint8 through a detector."""
        pooled, spatial, kept = FeatureStatistics(detector.feature_dim), FeatureStatistics(detector.spatial_dim), []
        chosen = set(_spread(len(images)))
        for number, batch in enumerate(images.split(batch_size)):
            seen, first = detector(batch), number * batch_size
            pooled.update(seen.features.cpu())
            if seen.spatial is not None:
                spatial.update(seen.spatial.cpu())
            kept.append(seen.features[[place for place in range(len(batch)) if first + place in chosen]].cpu())
        state = {"mean": pooled.mean, "covariance": pooled.covariance, "features": torch.cat(kept)}
        if detector.spatial_dim:
            state |= {"spatial_mean": spatial.mean, "spatial_covariance": spatial.covariance}
        return cls(state)

    @classmethod
    def read(cls, file: Path, detector: Detector) -> Reference:
        """Of an .npz as ADM's evaluator and clean-fid have them: `mu`, `sigma`; `mu_s`, `sigma_s` for sFID; and images
        `arr_0` (N, H, W, 3) uint8 for what compares samples one by one.

        Raises:
            ValueError: it holds something else, or is of another detector.
        """
        names = {"mu": "mean", "sigma": "covariance", "mu_s": "spatial_mean", "sigma_s": "spatial_covariance"}
        with np.load(file, allow_pickle=False) as found:
            state = {
                ours: torch.from_numpy(found[theirs]).double() for theirs, ours in names.items() if theirs in found
            }
            images = torch.from_numpy(found["arr_0"]) if "arr_0" in found else None
        dim = detector.feature_dim
        shapes = [tuple(state[name].shape) for name in ("mean", "covariance") if name in state]
        if shapes != [(dim,), (dim, dim)]:
            raise ValueError(f"{file} has no mu ({dim},) and sigma ({dim}, {dim})")
        if images is not None:
            chosen = images[list(_spread(len(images)))].permute(0, 3, 1, 2)
            state["features"] = torch.cat([detector(batch).features.cpu() for batch in chosen.split(256)])
        return cls(state)

    def judge(self, seen: Seen, metrics: tuple[Judged, ...]) -> dict[Judged, Estimate | Measured]:
        """Metrics of samples, the classes spread evenly over them.

        Raises:
            ValueError: the reference lacks what a metric compares with.
        """
        found: dict[Judged, Estimate | Measured] = {}
        if "fid" in metrics:
            found["fid"] = self._target.estimate(seen.features)
        if "fid_infinity" in metrics:
            found["fid_infinity"] = self._target.limit(seen.features)
        if "fid_floor" in metrics:
            found["fid_floor"] = self.floor(len(seen.features))
        if "sfid" in metrics:
            assert seen.spatial is not None, "a probe without the Inception asks for no sfid"
            found["sfid"] = self._spatial_target().estimate(seen.spatial)
        if "is" in metrics:
            found["is"] = inception_score_estimate(seen.probs)
        if "kid" in metrics:
            found["kid"] = kernel_estimate(seen.features, self._features())
        if "precision" in metrics or "recall" in metrics:
            found["precision"], found["recall"] = precision_recall_estimates(self._features(), seen.features)
        return {metric: found[metric] for metric in metrics}

    def floor(self, samples: int) -> Measured:
        """The Frechet distance of so many real images, drawn with replacement from those whose features are kept; where
        none are, of features drawn from the reference's own Gaussian."""
        if samples not in self._floors:
            chance, kept = torch.Generator().manual_seed(0), self.state.get("features")
            distances = []
            for _ in range(DRAWS):
                if kept is None:
                    noise = torch.randn(samples, self._target.root.shape[1], generator=chance, dtype=torch.float64)
                    drawn = noise @ self._target.root.T + self._target.mean
                else:
                    drawn = kept[torch.randint(len(kept), (samples,), generator=chance)]
                distances.append(self._target.distance(FeatureStatistics.of(drawn)))
            self._floors[samples] = Measured(statistics.fmean(distances), statistics.stdev(distances) / DRAWS**0.5)
        return self._floors[samples]

    def _features(self) -> Tensor:
        if "features" not in self.state:
            raise ValueError("kid, precision and recall compare images, and the reference has statistics alone")
        return self.state["features"]

    def _spatial_target(self) -> Target:
        if "spatial_mean" not in self.state:
            raise ValueError("sfid needs mu_s and sigma_s, and the reference has none")
        if self._spatial is None:
            self._spatial = Target(self.state["spatial_mean"], self.state["spatial_covariance"])
        return self._spatial


def _spread(count: int) -> range:
    """The places of at most `KEPT` of so many images, spread evenly."""
    return range(0, count, -(-count // KEPT))
