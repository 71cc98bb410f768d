"""Statistics of the real images' features, with which samples are compared."""

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
DRAWS = 4  # sets of real images that are drawn for `Reference.floor`
KEPT = 10_000  # images, spread evenly, whose features are kept for metrics of single images; as many as in ADM


class Reference:
    """The reference statistics of a data set for one detector.

    Args:
        state: `mean` (D,) and `covariance` (D, D) float64 of all real images' features; optionally `spatial_mean` and
            `spatial_covariance` for sFID, and `features` (M, D) of some images for metrics that compare single images.
    """

    def __init__(self, state: dict[str, Tensor]):
        self.state = state
        self._target = Target(state["mean"], state["covariance"])
        self._spatial: Target | None = None  # made on first use, as its root takes seconds
        self._floors: dict[int, Measured] = {}  # by the number of samples

    @classmethod
    def of(cls, images: Tensor, detector: Detector, batch_size: int = 256, group: ProcessGroup = ALONE) -> Reference:
        """The reference of real images (N, 3, H, W) uint8. The ranks of `group` divide the images."""
        builder = ReferenceBuilder(detector.feature_dim, detector.spatial_dim, len(images))
        for output in group.share(images.split(batch_size), lambda batch: detector(batch).cpu()):
            builder.update(output.features, output.spatial)
        return cls(builder.reference)

    @classmethod
    def read(cls, file: Path, detector: Detector) -> Reference:
        """The reference in an .npz file in the format of ADM's evaluator and clean-fid.

        The file has `mu` and `sigma`; for sFID `mu_s` and `sigma_s`; and for metrics that compare single images `arr_0`
        (N, H, W, 3) uint8.

        Raises:
            ValueError: the file has no mu and sigma of this detector's dimension.
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
        """Metrics of samples, whose classes must be spread evenly over the rows.

        Raises:
            ValueError: the reference lacks what a metric needs.
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
        """The Frechet distance of `samples` real images from the reference: what a perfect model would score.

        Real images are drawn with replacement from the kept features; without those, from the reference's Gaussian.
        """
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
            raise ValueError(
                "kid, precision and recall need features of single images, and the reference has only statistics"
            )
        return self.state["features"]

    def _spatial_target(self) -> Target:
        if "spatial_mean" not in self.state:
            raise ValueError("sfid needs mu_s and sigma_s, and the reference has none")
        if self._spatial is None:
            self._spatial = Target(self.state["spatial_mean"], self.state["spatial_covariance"])
        return self._spatial


class ReferenceBuilder:
    """Builds a reference from images that come in order.

    Args:
        feature_dim, spatial_dim: dimensions of the detector's outputs.
        count: largest number of images.
    """

    def __init__(self, feature_dim: int, spatial_dim: int, count: int):
        self._pooled, self._spatial = FeatureStatistics(feature_dim), FeatureStatistics(spatial_dim)
        self._every = _spread(count).step
        self._kept: list[Tensor] = []

    def update(self, features: Tensor, spatial: Tensor | None) -> None:
        """Add the features (N, D) and, where the detector has them, the spatial features (N, S) of the next N
        images."""
        first = -self._pooled.count % self._every
        self._kept.append(features[first :: self._every].clone())
        self._pooled.update(features)
        if spatial is not None:
            self._spatial.update(spatial)

    @property
    def reference(self) -> dict[str, Tensor]:
        """The state of the `Reference` of all images so far."""
        state = {"mean": self._pooled.mean, "covariance": self._pooled.covariance, "features": torch.cat(self._kept)}
        if self._spatial.count:
            state |= {"spatial_mean": self._spatial.mean, "spatial_covariance": self._spatial.covariance}
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue."""
        parts = {"pooled": self._pooled, "spatial": self._spatial}
        state = {
            f"{part}.{name}": tensor
            for part, statistics in parts.items()
            for name, tensor in statistics.state_dict().items()
        }
        return state | {"every": torch.tensor(self._every), "kept": torch.cat(self._kept)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> ReferenceBuilder:
        """The builder that `state_dict` describes."""
        builder = cls(0, 0, 1)
        builder._every = int(state["every"])
        builder._kept = [state["kept"]]
        builder._pooled, builder._spatial = (
            FeatureStatistics.from_state_dict({name: state[f"{part}.{name}"] for name in ("count", "mean", "scatter")})
            for part in ("pooled", "spatial")
        )
        return builder


class ReferenceBuilders:
    """Builds the references of several detectors, by name.

    Args:
        count: largest number of images.
    """

    def __init__(self, count: int):
        self._count = count
        self._by_detector: dict[str, ReferenceBuilder] = {}

    def update(self, seen: Sequence[Mapping[str, tuple[Array, Array | None]]]) -> None:
        """Add batches of the next images.

        Args:
            seen: for each batch, by detector, the pooled features (N, D) and the spatial ones (N, S) or None.
        """
        for name in seen[0] if seen else ():
            features = np.concatenate([part[name][0] for part in seen])
            parts = [spatial for part in seen if (spatial := part[name][1]) is not None]
            spatial = np.concatenate(parts) if parts else None
            if name not in self._by_detector:
                dim = 0 if spatial is None else spatial.shape[1]
                self._by_detector[name] = ReferenceBuilder(features.shape[1], dim, self._count)
            spatial_tensor = None if spatial is None else torch.from_numpy(spatial)
            self._by_detector[name].update(torch.from_numpy(features), spatial_tensor)

    def save_references(self, folder: Path) -> list[str]:
        """Write the references of all images so far into a folder; returns the names of the files."""
        names = [f"reference-{name}.safetensors" for name in self._by_detector]
        for file, builder in zip(names, self._by_detector.values(), strict=True):
            cached.write(builder.reference, folder / file)
        return names

    def save(self) -> bytes:
        """Everything needed to continue."""
        states = {name: builder.state_dict() for name, builder in self._by_detector.items()}
        tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
        return safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})

    @classmethod
    def load(cls, saved: bytes | None, count: int) -> ReferenceBuilders:
        """The builders that `save` saved; new ones if `saved` is None or empty."""
        builders = cls(count)
        tensors = safetensors.torch.load(saved) if saved else {}
        for name in dict.fromkeys(key.split("/")[0] for key in tensors):
            state = {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
            builders._by_detector[name] = ReferenceBuilder.from_state_dict(state)
        return builders


def _spread(count: int) -> range:
    """The indices of at most `KEPT` of `count` images, spread evenly."""
    return range(0, count, max(1, -(-count // KEPT)))
