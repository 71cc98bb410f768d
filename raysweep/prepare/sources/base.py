"""The types that all sources share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from raysweep.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
Item = tuple[Any, ...]  # plain values; the first is the image's name in its source, the second its label


class Picture(NamedTuple):
    """An image: the content of its file, or pixels (h, w, 3) or (h, w) uint8."""

    source: str
    label: int
    content: bytes | npt.NDArray[np.uint8]


class Latents(NamedTuple):
    """An image's latents that other software encoded: mean and standard deviation (2, C, H, W)."""

    source: str
    label: int
    latent: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.float32] | None = None


class Reader(Protocol):
    """Reads items of a source, on any machine that has access to its files."""

    def __call__(self, items: Sequence[Item]) -> Iterator[Picture | Latents]: ...


@dataclass(frozen=True)
class Source:
    """A set of images in the order in which they are prepared.

    Args:
        about: a short description.
        latents: whether the reader yields `Latents` instead of pictures.
        scaled: whether these latents are already normalised for the backbone.
    """

    about: str
    items: Sequence[Item]
    class_names: tuple[str, ...]
    reader: Reader
    latents: bool = False
    scaled: bool = False

    def check(self) -> None:
        """Refuse a source that is empty, or has classes without images.

        Raises:
            UserError: it is empty, or a class or label is missing.
        """
        if not self.items:
            raise UserError(f"{self.about}: there are no images in it")
        counts = np.bincount([item[1] for item in self.items], minlength=len(self.class_names))
        if len(counts) > len(self.class_names):
            raise UserError(f"{self.about}: label {len(counts) - 1}, but {len(self.class_names)} classes, from 0")
        if missing := [self.class_names[label] for label in np.flatnonzero(counts == 0)]:
            some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UserError(f"{self.about}: no images of {some}; labels run from 0, and every class needs images")

    def fingerprint(self) -> str:
        """SHA-256 (hex) of class names and items, to recognise the list that a preparation began with."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for item in self.items:
            digest.update(repr(item).encode())
        return digest.hexdigest()


def numbered(labels: Iterable[int]) -> tuple[str, ...]:
    """Class names for classes without names: their numbers."""
    return tuple(map(str, range(max(labels, default=-1) + 1)))


def files_below(place: Path, endings: Iterable[str]) -> list[Path]:
    """All files with these endings, sorted by path, without hidden files (macOS leaves `._…` files)."""
    known = set(endings)
    return sorted(file for file in place.rglob("*") if file.suffix.lower() in known and not file.name.startswith("."))
