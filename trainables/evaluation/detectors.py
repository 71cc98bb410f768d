"""Networks that turn images into features and class probabilities.

Only the FID Inception makes a Frechet distance an FID; another detector's metrics carry its suffix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trainables import effnet


class Detector(nn.Module, ABC):
    """images (N, 3, H, W) uint8 -> features (N, feature_dim) float32, probs (N, K) float32, where the detector is."""

    metric_suffix: str  # of the metrics' names
    feature_dim: int
    identity: str  # SHA-256 (hex) of the weights' file

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and probabilities of the images."""


class EfficientNetLite0(Detector):
    """EfficientNet-Lite0 of ImageNet-1k at 64 px: pooled features, softmax over 1000 classes.

    Raises:
        ImportError: its packages are not installed.
    """

    metric_suffix = "effnet"
    feature_dim = 1280
    image_size = 64

    def __init__(self) -> None:
        super().__init__()
        self.network = effnet.load(self.image_size)
        self.identity = effnet.identity()
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # More at once is slower on a CPU: activations leave its caches.
        features = torch.cat([self._features(batch) for batch in images.split(64)])
        return features, self.network._fc(features).softmax(dim=1)

    def _features(self, images: Tensor) -> Tensor:
        pixels = effnet.pixels(images.to(self.network._fc.weight), self.image_size)
        maps: Tensor = self.network.extract_features(pixels)  # (N, 1280, 2, 2)
        return maps.mean(dim=(2, 3))


# The FID Inception joins here once its weights have a place; until then its name is refused like any other.
DETECTORS: dict[str, type[Detector]] = {"effnet_lite0": EfficientNetLite0}


def create(name: str) -> Detector:
    """A frozen detector in evaluation mode, on the CPU.

    Raises:
        ValueError: no such detector.
        ImportError: its packages are not installed; the message says what to install.
    """
    if name not in DETECTORS:
        raise ValueError(f"no detector '{name}'; known: {', '.join(DETECTORS)}")
    return DETECTORS[name]()
