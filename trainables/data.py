"""Images and latents of the embedded data sets. No horizontal flips: emoji hold text and flags."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from trainables import catalog
from trainables.encode import encode, load_autoencoder


@dataclass(frozen=True)
class LatentSet:
    """Posteriors of an autoencoder over a set of N images. Unscaled; `sample` scales."""

    mean: Tensor  # (N, C, H, W) float32
    std: Tensor  # (N, C, H, W) float32
    labels: Tensor  # (N,) int64
    num_classes: int
    scaling_factor: float

    def sample(self, indices: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents (B, C, H, W) of the images `indices` (B,), at `noise` (B, C, H, W) within the posterior."""
        return (self.mean[indices] + self.std[indices] * noise) * self.scaling_factor


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


def load_latents(name: str, cache_dir: Path) -> LatentSet:
    """The training split as latents: encoded once, then read from `cache_dir`, in a file named by the set's identity.

    Any number of processes may ask at once. A file that is torn or altered is made anew.

    Raises:
        LookupError: no such data set, or one that this package does not ship.
    """
    path = cache_dir / f"{catalog.identity(name)}.safetensors"
    tensors = _read(path)
    if tensors is None:
        tensors = _encode_training_split(name)
        _publish(tensors, path)
    return LatentSet(
        mean=tensors["mean"],
        std=tensors["std"],
        labels=tensors["labels"],
        num_classes=catalog.DATASETS[name].num_classes,
        scaling_factor=tensors["scaling_factor"].item(),
    )


def _encode_training_split(name: str) -> dict[str, Tensor]:
    images, labels = load_images(name, "train")
    autoencoder = load_autoencoder(catalog.files(name)[1])
    mean, std = encode(autoencoder, images)
    scaling_factor = torch.tensor(autoencoder.config.scaling_factor, dtype=torch.float64)
    return {"mean": mean, "std": std, "labels": labels, "scaling_factor": scaling_factor}


def _publish(tensors: dict[str, Tensor], path: Path) -> None:
    """Write aside, then rename: whoever looks sees a whole file or none, and of two writers the last one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        save_file({**tensors, "sha256": _checksum(tensors)}, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Tensor] | None:
    """What `_publish` wrote, or None where it is missing, torn or altered."""
    try:
        # Read in one go: safetensors' own reader opens the path twice and may meet two writers' files.
        tensors = load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return None
    checksum = tensors.pop("sha256", torch.empty(0))
    return tensors if checksum.tolist() == _checksum(tensors).tolist() else None


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    """SHA-256 (32,) uint8 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
