"""Networks that turn images into features and class probabilities.

A Frechet distance is an FID only with the FID Inception; the metrics of another detector have its suffix.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainables.config import ProbeSpec
from trainables.datasets import catalog, checks
from trainables.encoders import effnet
from trainables.evaluation.inception import FEATURES, SPATIAL, Inception, prepare

BATCH = 32  # images per call; the activations of a larger batch do not fit into a CPU's caches


class DetectorOutput(NamedTuple):
    """The output of a detector for N images."""

    features: Tensor  # (N, feature_dim) float32
    probs: Tensor  # (N, K) class probabilities
    spatial: Tensor | None = None  # (N, S) float32 for sFID, where the detector has them

    def cpu(self) -> DetectorOutput:
        """A copy in the host's memory."""
        return DetectorOutput(
            self.features.cpu(), self.probs.cpu(), None if self.spatial is None else self.spatial.cpu()
        )


class Detector(nn.Module, ABC):
    """images (N, 3, H, W) uint8 -> `DetectorOutput`, on the detector's device."""

    feature_dim: int
    spatial_dim: int = 0
    identity: str  # SHA-256 (hex) of the weights, and of the resizing where there is a choice

    @abstractmethod
    def forward(self, images: Tensor) -> DetectorOutput:
        """Features and class probabilities of images."""


class EfficientNetLite0(Detector):
    """EfficientNet-Lite0 of ImageNet-1k at 64 px: pooled features, softmax over 1000 classes.

    Raises:
        ImportError: a package is missing.
    """

    feature_dim = 1280
    image_size = 64

    def __init__(self) -> None:
        super().__init__()
        self.network = effnet.load(self.image_size)
        self.identity = effnet.identity()
        self.eval()

    def forward(self, images: Tensor) -> DetectorOutput:
        features = torch.cat([self._features(batch) for batch in images.split(BATCH)])
        return DetectorOutput(features, self.network._fc(features).softmax(dim=1))

    def _features(self, images: Tensor) -> Tensor:
        pixels = effnet.pixels(images.to(self.network._fc.weight), self.image_size)
        maps: Tensor = self.network.extract_features(pixels)  # (N, 1280, 2, 2)
        return maps.mean(dim=(2, 3))


class FidInception(Detector):
    """The Inception of FID, sFID and IS, from the weights of pytorch-fid or torch-fidelity.

    Raises:
        ValueError: the file does not hold these weights.
    """

    feature_dim, spatial_dim = FEATURES, SPATIAL

    def __init__(self, file: Path, resize: str):
        super().__init__()
        self.resize = resize
        self.identity = hashlib.sha256(f"{catalog.file_identity(file)} {resize}".encode()).hexdigest()
        with torch.device("meta"):
            self.network = Inception()
        try:
            self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), assign=True)
        except (RuntimeError, UnpicklingError, TypeError):
            raise ValueError(f"{file} does not hold the weights of the FID Inception") from None
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> DetectorOutput:
        device = self.network.fc.weight.device
        parts = [self.network(prepare(batch.to(device), self.resize)) for batch in images.split(BATCH)]
        pool, spatial, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return DetectorOutput(pool, logits.double().softmax(dim=1), spatial)


def create(spec: ProbeSpec) -> Detector:
    """The frozen detector of a probe in evaluation mode, on the CPU.

    Raises:
        ImportError: a package is missing; the message says what to install.
        LookupError: its files are missing, or not those that the probe names; the message says what to do.
        ValueError: its file does not hold the weights.
    """
    if spec.detector == "effnet_lite0":
        return EfficientNetLite0()
    if fault := checks.probe_fault(spec):  # checked again here, because files may differ between machines
        raise LookupError(fault)
    return FidInception(catalog.inception_file(spec.detector_weights), spec.resize)
