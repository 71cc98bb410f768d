"""The real images, as a detector sees them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from trainables.config import Metric
from trainables.datasets import cached
from trainables.evaluation.detectors import Detector, DetectorOutput
from trainables.evaluation.estimate import Estimate, Measured
from trainables.evaluation.frechet import Target
from trainables.evaluation.kernel import kernel_estimate
from trainables.evaluation.manifold import precision_recall_estimates
from trainables.evaluation.score import inception_score_estimate
from trainables.evaluation.statistics import FeatureStatistics
from trainables.process_group import ALONE, ProcessGroup

Array = npt.NDArray[np.float32]
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
    def of(cls, images: Tensor, detector: Detector, batch_size: int = 256, group: ProcessGroup = ALONE) -> Reference:
        """Of real images (N, 3, H, W) uint8 through a detector, which the crew's ranks show it together."""
        gathering = ReferenceBuilder(detector.feature_dim, detector.spatial_dim, len(images))
        for output in group.share(images.split(batch_size), lambda batch: detector(batch).cpu()):
            gathering.update(output.features, output.spatial)
        return cls(gathering.reference)

    @classmethod
    def read(cls, file: Path, detector: Detector) -> Reference:
        """Of an .npz as ADM's evaluator and clean-fid have them: `mu`, `sigma`; `mu_s`, `sigma_s` for sFID; and images
        `arr_0` (N, H, W, 3) uint8 for what compares samples one by one.

        Raises:
            ValueError: it holds something else, or is of another detector.
        """
        names = {"mu": "mean", "sigma": "covariance", "mu_s": "spatial_mean", "sigma_s": "spatial_covariance"}
        with np.load(file, allow_pickle=False) as arrays:
            state = {
                ours: torch.from_numpy(arrays[theirs]).double() for theirs, ours in names.items() if theirs in arrays
            }
            images = torch.from_numpy(arrays["arr_0"]) if "arr_0" in arrays else None
        dim = detector.feature_dim
        shapes = [tuple(state[name].shape) for name in ("mean", "covariance") if name in state]
        if shapes != [(dim,), (dim, dim)]:
            raise ValueError(f"{file} has no mu ({dim},) and sigma ({dim}, {dim})")
        if images is not None:
            chosen = images[list(_spread(len(images)))].permute(0, 3, 1, 2)
            state["features"] = torch.cat([detector(batch).features.cpu() for batch in chosen.split(256)])
        return cls(state)

    def estimates_of(self, output: DetectorOutput, metrics: tuple[Metric, ...]) -> dict[Metric, Estimate | Measured]:
        """Metrics of samples, the classes spread evenly over them.

        Raises:
            ValueError: the reference lacks what a metric compares with.
        """
        estimates: dict[Metric, Estimate | Measured] = {}
        if "fid" in metrics:
            estimates["fid"] = self._target.estimate(output.features)
        if "fid_infinity" in metrics:
            estimates["fid_infinity"] = self._target.limit(output.features)
        if "fid_floor" in metrics:
            estimates["fid_floor"] = self.floor(len(output.features))
        if "sfid" in metrics:
            assert output.spatial is not None, "a probe without the Inception asks for no sfid"
            estimates["sfid"] = self._spatial_target().estimate(output.spatial)
        if "is" in metrics:
            estimates["is"] = inception_score_estimate(output.probs)
        if "kid" in metrics:
            estimates["kid"] = kernel_estimate(output.features, self._features())
        if "precision" in metrics or "recall" in metrics:
            estimates["precision"], estimates["recall"] = precision_recall_estimates(self._features(), output.features)
        return {metric: estimates[metric] for metric in metrics}

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


class ReferenceBuilder:
    """A reference in the making, of images that come in order.

    Args:
        feature_dim, spatial_dim: of the detector.
        count: how many images are to come, at most.
    """

    def __init__(self, feature_dim: int, spatial_dim: int, count: int):
        self._pooled, self._spatial = FeatureStatistics(feature_dim), FeatureStatistics(spatial_dim)
        self._every = _spread(count).step
        self._kept: list[Tensor] = []

    def update(self, features: Tensor, spatial: Tensor | None) -> None:
        """Take in features (N, D) and, where the detector has such, spatial ones (N, S) of the next N images."""
        first = -self._pooled.count % self._every
        self._kept.append(features[first :: self._every].clone())
        self._pooled.update(features)
        if spatial is not None:
            self._spatial.update(spatial)

    @property
    def reference(self) -> dict[str, Tensor]:
        """The state of a `Reference` of all so far."""
        state = {"mean": self._pooled.mean, "covariance": self._pooled.covariance, "features": torch.cat(self._kept)}
        if self._spatial.count:
            state |= {"spatial_mean": self._spatial.mean, "spatial_covariance": self._spatial.covariance}
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        parts = {"pooled": self._pooled, "spatial": self._spatial}
        state = {
            f"{part}.{name}": tensor
            for part, statistics in parts.items()
            for name, tensor in statistics.state_dict().items()
        }
        return state | {"every": torch.tensor(self._every), "kept": torch.cat(self._kept)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> ReferenceBuilder:
        """What `state_dict` described."""
        gathering = cls(0, 0, 1)
        gathering._every = int(state["every"])
        gathering._kept = [state["kept"]]
        gathering._pooled, gathering._spatial = (
            FeatureStatistics.from_state_dict({name: state[f"{part}.{name}"] for name in ("count", "mean", "scatter")})
            for part in ("pooled", "spatial")
        )
        return gathering


class ReferenceBuilders:
    """References in the making, by detector.

    Args:
        count: how many images are to come, at most.
    """

    def __init__(self, count: int):
        self._count = count
        self._by_detector: dict[str, ReferenceBuilder] = {}

    def update(self, seen: Sequence[Mapping[str, tuple[Array, Array | None]]]) -> None:
        """Take in what each detector saw in the next images, batch by batch: pooled features (N, D), spatial (N, S)."""
        for name in seen[0] if seen else ():
            features = np.concatenate([part[name][0] for part in seen])
            parts = [spatial for part in seen if (spatial := part[name][1]) is not None]
            spatial = np.concatenate(parts) if parts else None
            if name not in self._by_detector:
                dim = 0 if spatial is None else spatial.shape[1]
                self._by_detector[name] = ReferenceBuilder(features.shape[1], dim, self._count)
            around = None if spatial is None else torch.from_numpy(spatial)
            self._by_detector[name].update(torch.from_numpy(features), around)

    def save_references(self, folder: Path) -> list[str]:
        """Write the references so far into a folder; returns the names of the files."""
        names = [f"reference-{name}.safetensors" for name in self._by_detector]
        for file, gathering in zip(names, self._by_detector.values(), strict=True):
            cached.write(gathering.reference, folder / file)
        return names

    def save(self) -> bytes:
        """All that is needed to go on."""
        states = {name: gathering.state_dict() for name, gathering in self._by_detector.items()}
        tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
        return safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})

    @classmethod
    def load(cls, saved: bytes | None, count: int) -> ReferenceBuilders:
        """What `save` has saved, if anything."""
        builders = cls(count)
        tensors = safetensors.torch.load(saved) if saved else {}
        for name in dict.fromkeys(key.split("/")[0] for key in tensors):
            state = {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
            builders._by_detector[name] = ReferenceBuilder.from_state_dict(state)
        return builders


def _spread(count: int) -> range:
    """The places of at most `KEPT` of so many images, spread evenly."""
    return range(0, count, max(1, -(-count // KEPT)))
