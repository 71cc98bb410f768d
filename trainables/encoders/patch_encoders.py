"""Frozen image encoders that give patch tokens, with which REPA aligns a block.

`effnet_lite0` comes with the laptop extra and needs no files. `dinov2` is a folder in transformers' format (config.json
and weights), such as facebook/dinov2-base, the encoder of REPA's paper. Nothing is downloaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate, islice
from operator import mul
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.encoders import effnet

try:
    import transformers
except ImportError:
    transformers = None

Kind = Literal["effnet_lite0", "dinov2"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module, ABC):
    """images (B, 3, h, w) uint8 -> tokens (B, grid * grid, width) float32, rows first."""

    width: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens of images."""


class EfficientNetLite0(Encoder):
    """The last feature map of EfficientNet-Lite0 at stride 16, for images resized to 16 * grid pixels.

    Raises:
        ImportError: its packages are not installed.
    """

    def __init__(self, grid: int):
        super().__init__()
        self.image_size = 16 * grid
        network = effnet.load(self.image_size)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        strides = accumulate((block._depthwise_conv.stride[0] for block in network._blocks), mul, initial=2)
        blocks = [
            block for block, stride in zip(network._blocks, islice(strides, 1, None), strict=True) if stride <= 16
        ]
        self.blocks = nn.Sequential(*blocks)
        self.width = blocks[-1]._project_conv.out_channels  # 112

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.blocks(self.stem(effnet.pixels(images, self.image_size)))  # (B, 112, grid, grid)
        return maps.flatten(2).transpose(1, 2).float()


class Dinov2(Encoder):
    """Patch tokens of a DINOv2 (with or without registers) after its last norm, for images at patch * grid pixels.

    Images are resized as in REPA (train.py, `preprocess_raw_image`): bicubic without antialiasing, normalised by
    ImageNet's mean and standard deviation. Departure: REPA resamples the position table of torch.hub's model with timm,
    antialiased; transformers resamples without antialiasing.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `path` is no folder with such a model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, grid: int, path: Path | None):
        super().__init__()
        self.network = _load_dinov2(path)
        config = self.network.config
        self.image_size = config.patch_size * grid
        self.width = config.hidden_size
        self.first = 1 + getattr(config, "num_register_tokens", 0)  # after class token and registers
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = F.interpolate(images.float(), (self.image_size, self.image_size), mode="bicubic")
        tokens: Tensor = self.network(pixel_values=(pixels / 255 - self.mean) / self.std).last_hidden_state
        return tokens[:, self.first :].float()


def _load_dinov2(path: Path | None) -> Any:
    if transformers is None:
        raise ImportError("the encoder 'dinov2' needs the repa extra: pip install 'raysweep[repa]'")
    needed = "the encoder 'dinov2' needs the folder of a DINOv2 model (config.json, model.safetensors)"
    if path is None or not (path / "config.json").is_file():
        raise ValueError(f"{needed}; got {path}")
    transformers.logging.disable_progress_bar()  # it would appear on every worker for less than a second
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        if config.model_type not in ("dinov2", "dinov2_with_registers"):
            raise ValueError(f"a {config.model_type}")
        network, report = transformers.AutoModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{needed}; {path} holds something else: {error}") from error
    if missing := {*report["missing_keys"], *report["mismatched_keys"]}:  # transformers initialises these at random
        raise ValueError(f"{needed}; the weights in {path} lack {', '.join(sorted(map(str, missing)))}")
    return network.float()  # transformers keeps the file's precision


def create(kind: Kind, *, grid: int, path: Path | None = None) -> Encoder:
    """A frozen encoder in evaluation mode, on the CPU, that gives grid x grid tokens.

    Args:
        path: the folder of the model, for encoders that do not come with a package.

    Raises:
        ValueError: no such encoder, or `path` does not hold it.
        ImportError: a package is missing; the message says what to install.
    """
    if kind == "effnet_lite0":
        encoder: Encoder = EfficientNetLite0(grid)
    elif kind == "dinov2":
        encoder = Dinov2(grid, path)
    else:
        raise ValueError(f"no encoder '{kind}'; known: {', '.join(get_args(Kind))}")
    return encoder.requires_grad_(False).eval()
