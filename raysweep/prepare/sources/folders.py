"""A folder of classes: each folder in it is a class, named after the folder, with all images below it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from raysweep.prepare.sources.base import IMAGES, Item, Picture, Source


class FolderReader:
    """Items are (path below the root, label)."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, items: Sequence[Item]) -> Iterator[Picture]:
        for path, label in items:
            yield Picture(path, label, (self.root / path).read_bytes())


def find(place: Path, split: str) -> Source | None:
    """The source in a folder of class folders. If the folder contains a folder named like the split, that one is
    used."""
    if not place.is_dir():
        return None
    if (place / split).is_dir():
        place = place / split
    classes = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        return None
    items = [(path, label) for label, name in enumerate(classes) for path in _images(place / name, name)]
    return Source(f"images in {place.name}", items, tuple(classes), FolderReader(place))


def _images(folder: Path, name: str) -> list[str]:
    """Paths of images, sorted. For a million files `os.scandir` is many times faster than pathlib."""
    paths = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            paths += _images(Path(entry.path), f"{name}/{entry.name}")
        elif os.path.splitext(entry.name)[1].lower() in IMAGES and not entry.name.startswith("."):
            paths.append(f"{name}/{entry.name}")
    return paths
