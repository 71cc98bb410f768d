"""A data set as training reads it: latents, labels and images by index. Sets are the embedded one or prepared ones."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from trainables.datasets import cached, catalog, prepared
from trainables.datasets.autoencoders import BATCH, Normalisation, encode, load_autoencoder, normalisation
from trainables.datasets.latent_files import Held, Mapped
from trainables.process_group import ALONE, ProcessGroup

MIRRORED_BELOW = 0.5  # an image is mirrored where `Draws.flipped` is below this


class Columns(Protocol):
    """The interface of `Mapped` files and `Held` tensors. latent_files.py lists the columns."""

    def take(self, column: str, indices: Tensor) -> Tensor: ...
    def expect(self, column: str, indices: Tensor) -> None: ...


@dataclass(frozen=True)
class LatentSet:
    """The posteriors of an autoencoder over N images, before normalisation. `sample` normalises."""

    columns: Columns
    num_images: int
    latent_shape: tuple[int, ...]  # (C, H, W)
    num_classes: int
    normalisation: Normalisation
    mirrored: bool = False  # whether there are latents of the mirrored images
    has_images: bool = False  # whether the set has the images themselves

    def sample(self, indices: Tensor, noise: Tensor, mirror: Tensor | None = None) -> Tensor:
        """Normalised latents (B, C, H, W) float32 sampled from the posteriors of images, on the device of the set.

        Args:
            indices: (B,) int64.
            noise: (B, C, H, W) standard normal, which is scaled by the posterior's standard deviation.
            mirror: (B,) bool, the images to mirror left to right. None mirrors none.
        """
        if mirror is None or not self.mirrored or not mirror.any():
            moments = self.columns.take("latent", indices)
        elif mirror.all():
            moments = self.columns.take("mirrored", indices)
        else:
            own, other = self.columns.take("latent", indices[~mirror]), self.columns.take("mirrored", indices[mirror])
            moments = own.new_empty((len(indices), *own.shape[1:]))
            moments[~mirror], moments[mirror] = own, other
        mean, std = moments.float().unbind(1)
        return self.normalisation.apply(mean + std * noise.to(mean.device, non_blocking=True))

    def labels(self, indices: Tensor) -> Tensor:
        """The labels (B,) int64 of images, in the host's memory."""
        return self.columns.take("label", indices).long().cpu()

    def images(self, indices: Tensor, mirror: Tensor | None = None) -> Tensor | None:
        """The images (B, 3, h, w) uint8, mirrored where `mirror` (B,) says so. None where the set has no images."""
        if not self.has_images:
            return None
        chosen = self.columns.take("image", indices)
        if mirror is None:
            return chosen
        return torch.where(mirror.to(chosen.device)[:, None, None, None], chosen.flip(-1), chosen)

    def expect(self, indices: Tensor, flipped: Tensor) -> None:
        """Read the latents of images ahead of their step. Returns at once.

        Args:
            indices: (B,) int64.
            flipped: (B,), `Draws.flipped`.
        """
        mirror = flipped < MIRRORED_BELOW if self.mirrored else torch.zeros(len(indices), dtype=torch.bool)
        self.columns.expect("latent", indices[~mirror])
        if self.mirrored:
            self.columns.expect("mirrored", indices[mirror])


def load_images(name: str, split: catalog.Split) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one split of an embedded set, in the order of the file.

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


def load_latents(
    name: str,
    cache_dir: Path,
    *,
    mirrored: bool = False,
    images: bool = False,
    device: torch.device | None = None,
    group: ProcessGroup = ALONE,
) -> LatentSet:
    """The training latents of a data set.

    The embedded set is encoded once, then read from `cache_dir`. A prepared set is read in place if it is on a local
    filesystem, else from a copy in `cache_dir`. Several processes may call this at once. A damaged cached file is made
    again.

    Args:
        mirrored: include the latents of the mirrored images.
        images: include the images themselves.
        device: hold the whole set there. Default: in the host's memory, or on disk for a prepared set.
        group: the ranks that call this. They divide the encoding if one of them has no cached file.

    Raises:
        LookupError: there is no such data set; or a prepared set lacks what is asked for, or is damaged.
    """
    latents = (
        _embedded(name, cache_dir, mirrored, images, group)
        if catalog.find(name).embedded
        else _prepared(name, cache_dir, mirrored, images)
    )
    return latents if device is None else _held(latents, device)


def folder(name: str, cache_dir: Path) -> Path:
    """The folder of a prepared set on this machine, after comparing its files with its manifest.

    Raises:
        LookupError: as `load_latents`.
    """
    return prepared.fetch(catalog.prepared_set(name), cache_dir)


def _prepared(name: str, cache_dir: Path, mirrored: bool, images: bool) -> LatentSet:
    manifest = catalog.prepared_set(name)
    catalog.require(name, mirrored=mirrored, images=images)
    place = folder(name, cache_dir)
    content = manifest.content
    shift, scale = (torch.tensor(content[which]).reshape(-1, 1, 1) for which in ("shift", "scale"))
    return LatentSet(
        columns=Mapped([place / shard for shard in manifest.shards], manifest.images),
        num_images=sum(manifest.images),
        latent_shape=manifest.latent_shape,
        num_classes=content["num_classes"],
        normalisation=Normalisation(shift, scale),
        mirrored=mirrored,
        has_images=images,
    )


def _held(latents: LatentSet, device: torch.device) -> LatentSet:
    everything = torch.arange(latents.num_images)
    columns = {"latent": True, "label": True, "mirrored": latents.mirrored, "image": latents.has_images}
    tensors = {}
    for column in (name for name, there in columns.items() if there):
        parts = [latents.columns.take(column, part).to(device) for part in everything.split(4096)]
        tensors[column] = torch.cat(parts)
    return LatentSet(**{**vars(latents), "columns": Held(tensors)})


def _embedded(name: str, cache_dir: Path, mirrored: bool, images: bool, group: ProcessGroup) -> LatentSet:
    known, tensors = catalog.find(name), _cached_latents(name, cache_dir, False, group)
    columns = {"latent": torch.stack([tensors["mean"], tensors["std"]], dim=1), "label": tensors["labels"]}
    if mirrored:
        mirror = _cached_latents(name, cache_dir, True, group)
        columns["mirrored"] = torch.stack([mirror["mean"], mirror["std"]], dim=1)
    if images:
        columns["image"] = load_images(name, "train")[0]
    return LatentSet(
        columns=Held(columns),
        num_images=known.num_images,
        latent_shape=known.latent_shape,
        num_classes=known.num_classes,
        normalisation=Normalisation(tensors["shift"], tensors["scale"]),
        mirrored=mirrored,
        has_images=images,
    )


def _cached_latents(name: str, cache_dir: Path, mirror: bool, group: ProcessGroup) -> dict[str, Tensor]:
    path = cache_dir / f"{catalog.identity(name)}{'-mirrored' if mirror else ''}.safetensors"
    tensors = cached.read(path) or {}
    if not all(group.gather("scale" in tensors)):  # files of earlier versions have no such entry
        tensors = _encode_training_split(name, mirror, group)
        cached.write(tensors, path)
    return tensors


def _encode_training_split(name: str, mirror: bool, group: ProcessGroup) -> dict[str, Tensor]:
    images, labels = load_images(name, "train")
    autoencoder = load_autoencoder(catalog.files(name)[1])
    batches = (images.flip(-1) if mirror else images).split(BATCH)
    mean, std = map(torch.cat, zip(*group.share(batches, partial(encode, autoencoder)), strict=True))
    shift, scale = normalisation(autoencoder)
    return {"mean": mean, "std": std, "labels": labels, "shift": shift, "scale": scale}
