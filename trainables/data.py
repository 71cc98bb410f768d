"""Images and latents of the embedded data sets."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from trainables import cached, catalog
from trainables.encode import Normalisation, encode, load_autoencoder, normalisation


@dataclass(frozen=True)
class LatentSet:
    """Posteriors of an autoencoder over a set of N images, as it gives them; `sample` normalises."""

    mean: Tensor  # (N, C, H, W) float32
    std: Tensor  # (N, C, H, W) float32
    labels: Tensor  # (N,) int64
    num_classes: int
    normalisation: Normalisation
    mirrored: tuple[Tensor, Tensor] | None = None  # mean and std of the images' mirror images, where recipes mirror
    images: Tensor | None = None  # (N, 3, h, w) uint8, where a method looks at them

    def sample(self, indices: Tensor, noise: Tensor, mirror: Tensor | None = None) -> Tensor:
        """Normalised latents (B, C, H, W) of the images `indices` (B,), at `noise` (B, C, H, W) within the posterior.

        Args:
            mirror: (B,) bool, which images are mirrored left to right; none where missing.
        """
        mean, std = self.mean[indices], self.std[indices]
        if mirror is not None and self.mirrored is not None:
            which = mirror[:, None, None, None]
            mean, std = (
                torch.where(which, other[indices], own) for own, other in zip((mean, std), self.mirrored, strict=True)
            )
        return self.normalisation.apply(mean + std * noise)

    def pictures(self, indices: Tensor, mirror: Tensor | None = None) -> Tensor | None:
        """The images (B, 3, h, w) uint8 themselves, mirrored alike; None where this set carries none."""
        if self.images is None:
            return None
        chosen = self.images[indices]
        return chosen if mirror is None else torch.where(mirror[:, None, None, None], chosen.flip(-1), chosen)


def load_images(name: str, split: catalog.Split) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one split, in the order of the file.

    Raises:
        LookupError: no such data set, or one that this package does not ship.
        ValueError: no such split.
    """
    if split not in get_args(catalog.Split):
        raise ValueError(f"no split '{split}'; known: {', '.join(get_args(catalog.Split))}")
    image_file, _ = catalog.files(name)
    columns = pq.read_table(image_file, columns=["image", "label", "codepoint"]).to_pydict()
    mine = [row for row, codepoint in enumerate(columns["codepoint"]) if catalog.split_of(codepoint) == split]
    images = np.stack([np.asarray(Image.open(io.BytesIO(columns["image"][row])).convert("RGB")) for row in mine])
    labels = torch.tensor([columns["label"][row] for row in mine])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def load_latents(name: str, cache_dir: Path, *, mirrored: bool = False, images: bool = False) -> LatentSet:
    """The training split as latents: encoded once, then read from `cache_dir`, in a file named by the set's identity.

    Any number of processes may ask at once. A file that is torn or altered is made anew.

    Args:
        mirrored: with the latents of the mirror images.
        images: with the images themselves.

    Raises:
        LookupError: no such data set, or one that this package does not ship.
    """
    tensors = _cached_latents(name, cache_dir, mirror=False)
    mirror = _cached_latents(name, cache_dir, mirror=True) if mirrored else None
    return LatentSet(
        mean=tensors["mean"],
        std=tensors["std"],
        labels=tensors["labels"],
        num_classes=catalog.DATASETS[name].num_classes,
        normalisation=Normalisation(tensors["shift"], tensors["scale"]),
        mirrored=(mirror["mean"], mirror["std"]) if mirror else None,
        images=load_images(name, "train")[0] if images else None,
    )


def _cached_latents(name: str, cache_dir: Path, mirror: bool) -> dict[str, Tensor]:
    path = cache_dir / f"{catalog.identity(name)}{'-mirrored' if mirror else ''}.safetensors"
    tensors = cached.read(path)
    if tensors is None or "scale" not in tensors:  # an earlier version's file has no such entry
        tensors = _encode_training_split(name, mirror)
        cached.write(tensors, path)
    return tensors


def _encode_training_split(name: str, mirror: bool) -> dict[str, Tensor]:
    images, labels = load_images(name, "train")
    autoencoder = load_autoencoder(catalog.files(name)[1])
    mean, std = encode(autoencoder, images.flip(-1) if mirror else images)
    shift, scale = normalisation(autoencoder)
    return {"mean": mean, "std": std, "labels": labels, "shift": shift, "scale": scale}
