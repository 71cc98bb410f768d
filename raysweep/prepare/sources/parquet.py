"""Parquet files with a column of images and one of labels, as on the Hugging Face hub; also the embedded data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import UserError
from raysweep.prepare.sources.base import Item, Picture, Source, files_below, numbered
from trainables.datasets import catalog
from trainables.errors import one_line

_IMAGE, _LABEL = ("image", "img", "jpg", "png", "webp"), ("label", "labels", "cls", "fine_label", "coarse_label")


class ParquetReader:
    """Items are (name, label, file below the root, row group, row in it)."""

    def __init__(self, root: Path, column: str):
        self.root, self.column = root, column

    def __call__(self, items: Sequence[Item]) -> Iterator[Picture]:
        for (file, group), rows in groupby(items, key=lambda item: (item[2], item[3])):
            column = _row_group(self.root / file, group, self.column)
            for name, label, _, _, row in rows:
                value = column[row].as_py()
                yield Picture(name, label, (value["bytes"] if isinstance(value, dict) else value) or b"")


def find(place: Path, split: str) -> Source | None:
    """The source in a file or folder. If some files of a folder have names that begin with the split, only those
    count."""
    files = [place] if place.suffix == ".parquet" and place.is_file() else []
    if place.is_dir():
        files = files_below(place, [".parquet"])
        files = [file for file in files if file.name.startswith(split)] or files
    if not files:
        return None
    root = place if place.is_dir() else place.parent
    items: list[Item] = []
    names: tuple[str, ...] | None = None
    image = ""
    for file in files:
        try:
            opened = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: not a Parquet file, or truncated ({one_line(error)})") from None
        image, label = (_column(opened.schema_arrow, known, file) for known in (_IMAGE, _LABEL))
        names = names or _names(opened.schema_arrow, label)
        path = str(file.relative_to(root))
        for group in range(opened.num_row_groups):
            for row, value in enumerate(opened.read_row_group(group, columns=[label]).column(0).to_pylist()):
                if not isinstance(value, int) or value < 0:
                    raise UserError(f"{file}: row {row} of row group {group} has the label {value}; labels run from 0")
                items.append((f"{path}#{group}.{row}", value, path, group, row))
    names = names or numbered(item[1] for item in items)
    return Source(f"images in {place.name}", items, names, ParquetReader(root, image))


def emoji9(split: str) -> Source:
    """The embedded pictograms, in the order and with the splits of `data: emoji9`."""
    file = catalog.files("emoji9")[0]
    table = pq.read_table(file, columns=["label", "codepoint"]).to_pydict()
    items = [
        (f"{codepoint}#{row}", label, file.name, 0, row)
        for row, (label, codepoint) in enumerate(zip(table["label"], table["codepoint"], strict=True))
        if catalog.split_of(codepoint) == split
    ]
    if not items or pq.ParquetFile(file).num_row_groups != 1:
        raise UserError(f"emoji9: no split '{split}'; known: train, test")
    names = catalog.find("emoji9").class_names
    return Source(f"the {split} split of emoji9", items, names, ParquetReader(file.parent, "image"))


@lru_cache(maxsize=1)
def _row_group(file: Path, group: int, column: str) -> Any:
    return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)


def _column(schema: pa.Schema, known: tuple[str, ...], file: Path) -> str:
    column = next((name for name in known if name in schema.names), None)
    if column is None:
        raise UserError(f"{file}: none of the columns {', '.join(known)}; it has {', '.join(schema.names)}")
    return column


def _names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of the classes in the metadata of the Hugging Face hub."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(str, names))
    except (KeyError, ValueError, TypeError):
        return None
