"""Tar files: ImageNet's (a tar with one tar per class), a folder of ImageNet's class tars, and WebDataset's.

The headers are read once to make an index; images are then read at their offsets. This does not work for compressed
tars.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from raysweep.errors import UserError
from raysweep.prepare.sources.base import IMAGES, Item, Picture, Source, numbered

_CLASS = re.compile(r"n\d{8}")  # a class of ImageNet, named by its WordNet id


class TarReader:
    """Items are (name, label, tar below the root, offset, bytes)."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, items: Sequence[Item]) -> Iterator[Picture]:
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            for name, label, tar, offset, size in items:
                if tar not in files:
                    files[tar] = stack.enter_context((self.root / tar).open("rb"))
                files[tar].seek(offset)
                yield Picture(name, label, files[tar].read(size))


def find(place: Path, split: str) -> Source | None:
    """The source in a tar or a folder of tars. If some of WebDataset's tars have the split in their names, only those
    count."""
    if place.is_file() and place.suffix == ".tar":
        tars = [place]
    elif place.is_dir():
        tars = sorted(file for file in place.iterdir() if file.suffix == ".tar")
    else:
        return None
    if not tars:
        return None
    if all(_CLASS.fullmatch(tar.stem) for tar in tars):
        parts = [(tar.stem, tar, 0, tar.stat().st_size) for tar in tars]
        return _classes(parts, tars[0].parent, place.name)
    if len(tars) == 1 and (parts := _class_tars(tars[0])):
        return _classes(parts, tars[0].parent, place.name)
    of_split = [tar for tar in tars if split in tar.name] or tars
    return _webdataset(of_split, place)


def _class_tars(tar: Path) -> list[tuple[str, Path, int, int]]:
    """The class tars inside a tar: (class, tar, offset of its content, bytes)."""
    members = list(_members(tar, 0, tar.stat().st_size, most=1))
    if not members or not members[0][0].endswith(".tar"):
        return []
    return sorted(
        (Path(name).stem, tar, offset, size)
        for name, offset, size in _members(tar, 0, tar.stat().st_size)
        if name.endswith(".tar")
    )


def _classes(parts: list[tuple[str, Path, int, int]], root: Path, about: str) -> Source:
    items: list[Item] = []
    for label, (name, tar, begin, length) in enumerate(parts):
        path = str(tar.relative_to(root))  # one string object for a million items
        members = sorted(_members(tar, begin, length))
        items += [
            (f"{name}/{Path(member).name}", label, path, offset, size)
            for member, offset, size in members
            if _is_image(member)
        ]
    return Source(f"ImageNet's images in {about}", items, tuple(name for name, *_ in parts), TarReader(root))


def _webdataset(tars: list[Path], place: Path) -> Source:
    root = place if place.is_dir() else place.parent
    items: list[Item] = []
    for tar in tars:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        with tar.open("rb") as stream:
            for member, offset, size in _members(tar, 0, tar.stat().st_size):
                key, _, ending = Path(member).name.partition(".")
                key = f"{Path(member).parent.as_posix()}/{key}".removeprefix("./")
                if ending in ("cls", "json"):
                    stream.seek(offset)
                    if (label := _label(stream.read(size), ending)) is not None:
                        labels[key] = label
                elif _is_image(member):
                    images[key] = offset, size
        if unlabelled := [key for key in images if key not in labels]:
            raise UserError(f"{tar}: image {unlabelled[0]} has no label: a .cls file, or 'label' in its .json")
        path = str(tar.relative_to(root))
        items += [(f"{tar.name}/{key}", labels[key], path, *where) for key, where in images.items()]
    names = numbered(item[1] for item in items)
    return Source(f"WebDataset's images in {place.name}", items, names, TarReader(root))


def _label(content: bytes, ending: str) -> int | None:
    try:
        value = json.loads(content)
        label = value if ending == "cls" else value.get("label", value.get("cls"))
        return label if isinstance(label, int) and label >= 0 else None
    except (ValueError, AttributeError):
        return None


def _is_image(member: str) -> bool:
    """Whether a member is an image by its ending; ImageNet's is .JPEG."""
    name = os.path.basename(member)
    return os.path.splitext(name)[1].lower() in IMAGES and not name.startswith(".")


def _members(tar: Path, begin: int, length: int, most: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(name, offset in `tar`, bytes) of the files in the archive of `length` bytes at offset `begin` of `tar`.

    Args:
        most: stop after that many members.

    Raises:
        UserError: it is truncated, compressed, or not a tar.
    """
    try:
        with tar.open("rb") as stream:
            stream.seek(begin)
            part: Any = _Part(stream, begin, length)
            with tarfile.open(fileobj=part, mode="r:") as archive:
                for number, member in enumerate(archive):
                    if number == most:
                        return
                    cast(Any, archive).members = []  # otherwise it would keep all of a million members
                    if member.isfile():
                        if member.offset_data + member.size > length:
                            raise tarfile.ReadError("unexpected end of data")
                        yield member.name, begin + member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{tar}: not a tar, compressed, or truncated ({error}); decompress or replace it") from None


class _Part:
    """A section of a file as a file of its own, read-only."""

    def __init__(self, stream: BinaryIO, begin: int, length: int):
        self._stream, self._begin, self._length, self._at = stream, begin, length, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._stream.seek(self._begin + self._at)
        content = self._stream.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        self._at = place + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at
