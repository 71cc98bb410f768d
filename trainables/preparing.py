"""What a worker does to prepare a chunk of images: decode, crop, encode, and compute features by detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from trainables.datasets.autoencoders import Autoencoder, encode
from trainables.datasets.images import Unreadable, centre_crop, decode
from trainables.evaluation.detectors import Detector

Columns = dict[str, npt.NDArray[np.generic]]
# By detector: pooled features (N, D) and, for detectors that have them, spatial features (N, S).
DetectorFeatures = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]]


@dataclass(frozen=True)
class CroppedChunk:
    """The readable images of a chunk, cropped to size."""

    pixels: npt.NDArray[np.uint8]  # (N, 3, size, size)
    labels: npt.NDArray[np.int32]  # (N,)
    sources: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]  # (source, why)


@dataclass(frozen=True)
class ShardRows:
    """Rows of a shard, and the detectors' features of their images."""

    columns: Columns
    sources: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    features: DetectorFeatures | None = None


def crop(pictures: Sequence[tuple[str, int, Any]], size: int) -> CroppedChunk:
    """Decode and crop pictures, given as (source, label, content of an image file or pixels)."""
    pixels, labels, sources, unreadable = [], [], [], []
    for source, label, content in pictures:
        try:
            picture = decode(content) if isinstance(content, bytes) else Image.fromarray(content).convert("RGB")
        except Unreadable as error:
            unreadable.append((source, str(error)))
            continue
        pixels.append(centre_crop(picture, size).transpose(2, 0, 1))
        labels.append(label)
        sources.append(source)
    # Without the copy the channels would stay last in memory, and convolutions round differently in that layout.
    whole = np.ascontiguousarray(np.stack(pixels)) if pixels else np.zeros((0, 3, size, size), np.uint8)
    return CroppedChunk(whole, np.array(labels, np.int32), tuple(sources), tuple(unreadable))


class RowEncoder:
    """Turns cropped images into rows of a shard.

    Args:
        detectors: compute features of the images, by name.
        mirrored: whether mirror images are encoded too.
        keep_images: whether the rows keep the pixels.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        detectors: Mapping[str, Detector],
        *,
        mirrored: bool = False,
        keep_images: bool = False,
    ):
        self.autoencoder, self.detectors = autoencoder, detectors
        self.mirrored, self.keep_images = mirrored, keep_images

    @torch.no_grad()
    def __call__(self, chunk: CroppedChunk) -> ShardRows:
        if not len(chunk.labels):
            return ShardRows({}, (), chunk.unreadable)
        images = torch.from_numpy(chunk.pixels)
        columns: Columns = {"latent": self._moments(images), "label": chunk.labels}
        if self.mirrored:
            columns["mirrored"] = self._moments(images.flip(-1))
        if self.keep_images:
            columns["image"] = chunk.pixels
        features: dict[str, Any] = {}
        for name, detector in self.detectors.items():
            output = detector(images).cpu()
            spatial = None if output.spatial is None else output.spatial.numpy()
            features[name] = output.features.numpy(), spatial
        return ShardRows(columns, chunk.sources, chunk.unreadable, features)

    def _moments(self, images: Tensor) -> npt.NDArray[np.float16]:
        """Mean and standard deviation of the latents (N, 2, C, h, w).

        Raises:
            OverflowError: a value is too large for float16.
        """
        mean, std = encode(self.autoencoder, images, batch_size=len(images))
        return as_float16(torch.stack([mean, std], dim=1).cpu().numpy())


def as_float16(moments: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The same values in float16.

    Raises:
        OverflowError: a value is too large for float16.
    """
    with np.errstate(over="ignore"):
        half = moments.astype(np.float16)
    if not np.isfinite(half).all():
        raise OverflowError(
            f"latents of up to {np.abs(moments).max():.3g} are too large for float16; is this their autoencoder?"
        )
    return half
