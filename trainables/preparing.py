"""What a worker does to prepare images: decode, cut, encode, look at through detectors, a chunk at a time."""

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
# What detectors make of images, by name: pooled features (N, D) and, where a detector has such, spatial ones (N, S).
Seen = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]]


@dataclass(frozen=True)
class Cut:
    """The readable images of a chunk, cut to size."""

    pixels: npt.NDArray[np.uint8]  # (N, 3, size, size)
    labels: npt.NDArray[np.int32]  # (N,)
    sources: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]  # (source, why)


@dataclass(frozen=True)
class Rows:
    """Rows of a shard, and what detectors make of their images: by name, pooled features and spatial ones."""

    columns: Columns
    sources: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    seen: Seen | None = None


def cut(pictures: Sequence[tuple[str, int, Any]], size: int) -> Cut:
    """Decode and cut pictures: (source, label, an image file's content or pixels)."""
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
    # numpy would keep the channels last in memory, and convolutions of such round otherwise.
    whole = np.ascontiguousarray(np.stack(pixels)) if pixels else np.zeros((0, 3, size, size), np.uint8)
    return Cut(whole, np.array(labels, np.int32), tuple(sources), tuple(unreadable))


class Encoder:
    """Cut images to rows of a shard.

    Args:
        detectors: that look at the images, by name.
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
    def __call__(self, chunk: Cut) -> Rows:
        if not len(chunk.labels):
            return Rows({}, (), chunk.unreadable)
        images = torch.from_numpy(chunk.pixels)
        columns: Columns = {"latent": self._moments(images), "label": chunk.labels}
        if self.mirrored:
            columns["mirrored"] = self._moments(images.flip(-1))
        if self.keep_images:
            columns["image"] = chunk.pixels
        seen: dict[str, Any] = {}
        for name, detector in self.detectors.items():
            found = detector(images).cpu()
            spatial = None if found.spatial is None else found.spatial.numpy()
            seen[name] = found.features.numpy(), spatial
        return Rows(columns, chunk.sources, chunk.unreadable, seen)

    def _moments(self, images: Tensor) -> npt.NDArray[np.float16]:
        """(N, 2, C, h, w).

        Raises:
            OverflowError: one is beyond float16.
        """
        mean, std = encode(self.autoencoder, images, batch_size=len(images))
        return as_float16(torch.stack([mean, std], dim=1).cpu().numpy())


def as_float16(moments: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The same in half the bytes.

    Raises:
        OverflowError: a value is not finite there.
    """
    with np.errstate(over="ignore"):
        half = moments.astype(np.float16)
    if not np.isfinite(half).all():
        raise OverflowError(
            f"latents of up to {np.abs(moments).max():.3g} are beyond float16; is this their autoencoder?"
        )
    return half
