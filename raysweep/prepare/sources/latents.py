"""Latents that other software made: folders of REPA and EDM2, LightningDiT's shards, DiT's features."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from raysweep.errors import UserError
from raysweep.prepare.sources.base import Item, Latents, Source, files_below, numbered
from trainables.errors import one_line

Latent = npt.NDArray[np.float32]


class NpyReader:
    """Reads one .npy file per image. Items are (path below root, label).

    Args:
        convert: turns an array into mean and standard deviation (2, C, H, W), or raises ValueError about its shape.
    """

    def __init__(self, root: Path, convert: Callable[[Latent], Latent]):
        self.root, self.convert = root, convert

    def __call__(self, items: Sequence[Item]) -> Iterator[Latents]:
        for path, label in items:
            try:
                latent = self.convert(_load(self.root / path))
            except ValueError as error:
                raise UserError(f"{self.root / path}: {error}") from None
            yield Latents(path, label, latent)


def _from_moments(array: Latent) -> Latent:
    """From REPA's and EDM2's (2C, H, W): mean and standard deviation."""
    if array.ndim != 3 or len(array) % 2:
        raise ValueError(f"shape {array.shape}; expected mean and standard deviation, (2C, H, W)")
    return array.reshape(2, len(array) // 2, *array.shape[1:])


def _from_features(array: Latent) -> Latent:
    """From DiT's (1, C, H, W): one sample of the posterior."""
    if array.ndim != 4 or len(array) != 1:
        raise ValueError(f"shape {array.shape}; expected (1, C, H, W)")
    return _as_posterior(array[0])


class ShardsReader:
    """Reads safetensors of LightningDiT: samples of the posterior, also of mirror images. Items are (name, label, path
    below root, row)."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, items: Sequence[Item]) -> Iterator[Latents]:
        for name, label, path, row in items:
            with safe_open(self.root / path, "numpy") as shard:
                own, mirror = (
                    shard.get_slice(key)[row] if key in shard.keys() else None  # noqa: SIM118 (shard is not a mapping)
                    for key in ("latents", "latents_flip")
                )
            yield Latents(name, label, _as_posterior(own), None if mirror is None else _as_posterior(mirror))


def find(place: Path, split: str) -> Source | None:
    """The source in a folder with latents of a known form."""
    if not place.is_dir():
        return None
    if (place / "vae-sd").is_dir():  # REPA keeps latents beside its images
        place = place / "vae-sd"
    if (place / "dataset.json").is_file() and next(place.glob("**/*.npy"), None):
        return _moments(place)
    features = [folder for folder in place.iterdir() if folder.is_dir() and folder.name.endswith("_features")]
    if len(features) == 1 and (labels := features[0].with_name(f"{features[0].name[:-9]}_labels")).is_dir():
        return _features(place, features[0], labels)
    shards = sorted(place.glob("*.safetensors"))
    return _shards(place, shards) if shards else None


def _moments(root: Path) -> Source:
    listing = root / "dataset.json"
    try:
        pairs = json.loads(listing.read_bytes())["labels"]
        items: list[Item] = sorted((str(path), int(label)) for path, label in pairs)
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{listing}: expected {{"labels": [["00000/img….npy", 0], …]}}, as EDM2 writes it') from None
    return Source(
        f"REPA's or EDM2's latents in {root.name}",
        items,
        numbered(label for _, label in items),
        NpyReader(root, _from_moments),
        latents=True,
    )


def _features(root: Path, features: Path, labels: Path) -> Source:
    files = sorted(files_below(features, [".npy"]), key=lambda file: (len(file.stem), file.stem))
    items: list[Item] = []
    for file in files:
        if not (labels / file.name).is_file():
            raise UserError(f"{file}: its label is missing, {labels.name}/{file.name}")
        items.append((str(file.relative_to(root)), int(_load(labels / file.name).reshape(-1)[0])))
    return Source(
        f"DiT's features in {features.name}",
        items,
        numbered(label for _, label in items),
        NpyReader(root, _from_features),
        latents=True,
        scaled=True,
    )


def _shards(root: Path, files: list[Path]) -> Source | None:
    items: list[Item] = []
    for file in files:
        try:
            with safe_open(file, "numpy") as shard:
                if not {"latents", "labels"} <= set(shard.keys()):
                    return None
                labels = shard.get_tensor("labels").tolist()
                count = shard.get_slice("latents").get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read, perhaps truncated ({one_line(error)})") from None
        if count != len(labels):
            raise UserError(f"{file}: {count} latents, but {len(labels)} labels")
        items += [(f"{file.name}#{row}", int(label), file.name, row) for row, label in enumerate(labels)]
    names = numbered(item[1] for item in items)
    return Source(f"LightningDiT's latents in {root.name}", items, names, ShardsReader(root), latents=True)


def _as_posterior(sample: Any) -> Latent:
    """A sample as a posterior with standard deviation 0."""
    latent: Latent = np.asarray(sample, np.float32)
    return np.stack([latent, np.zeros_like(latent)])


def _load(file: Path) -> Latent:
    try:
        return np.asarray(np.load(file, allow_pickle=False), np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: cannot be read, perhaps truncated ({one_line(error)})") from None
