"""IDX files, the format of MNIST: train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without gzip."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysweep.errors import UserError
from raysweep.prepare.sources.base import Item, Picture, Source, numbered

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = {"train": "train", "test": "t10k"}


class IdxReader:
    """Items are (number as text, label, number)."""

    def __init__(self, file: Path):
        self.file = file

    def __call__(self, items: Sequence[Item]) -> Iterator[Picture]:
        images = read_idx(self.file)
        for name, label, number in items:
            yield Picture(name, label, images[number])


def find(place: Path, split: str) -> Source | None:
    """The source in a folder with IDX files."""
    if not place.is_dir():
        return None
    prefix = _FILES.get(split, split)
    images, labels = (_file(place, f"{prefix}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if images is None or labels is None:
        return None
    numbers = read_idx(labels).tolist()
    if len(numbers) != len(read_idx(images)):
        raise UserError(f"{images}: {len(read_idx(images))} images, but {len(numbers)} labels in {labels.name}")
    items = [(f"{prefix}-{number}", label, number) for number, label in enumerate(numbers)]
    return Source(f"the {split} split of {place.name}", items, numbered(numbers), IdxReader(images))


def fashion_mnist(split: str) -> Source:
    """Fashion-MNIST from Debian's package.

    Raises:
        UserError: the package is not installed.
    """
    source = find(DEBIAN, split) if DEBIAN.is_dir() else None
    if source is None:
        raise UserError(
            "fashion-mnist: not installed; apt install dataset-fashion-mnist, or give a folder of IDX files"
        )
    return Source(source.about, source.items, FASHION, source.reader)


@lru_cache(maxsize=2)
def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    Raises:
        UserError: the file is truncated, or holds something else.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            content = stream.read()
        zero, kind, dims = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
        if (zero, kind) != (0, 8):
            raise ValueError("its values are not unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{file}: not an IDX file, or truncated ({error})") from None


def _file(place: Path, name: str) -> Path | None:
    return next((place / f"{name}{ending}" for ending in (".gz", "") if (place / f"{name}{ending}").is_file()), None)
