"""Shards of a prepared data set: memory-mapped Arrow files of one record batch, one row per image.

Columns are `latent` (2, C, H, W) float16, the mean and standard deviation of the autoencoder's posterior before
normalisation; `label` int32; `source` string, where the image came from. Optional columns are `mirrored`, the `latent`
of the mirrored image; `image` (3, h, w) uint8; and `features` (T, D) float16 of an encoder, with `features_mirrored`.
The shapes are in the Arrow schema.

A mapped file takes no memory of its own: its pages are in the page cache, which all processes of a host share.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]
SAME_BITS = ("latent", "mirrored", "label")  # columns that training reads, unless a method needs more


def write_shard(path: Path, columns: Mapping[str, Array | Sequence[str]]) -> None:
    """Write one shard. Arrays have shape (N, …); `source` is a list of N strings."""
    arrays = {
        name: pa.array(values, pa.string()) if name == "source" else _arrow(np.asarray(values))
        for name, values in columns.items()
    }
    batch = pa.record_batch(arrays)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def content_sha256(columns: Mapping[str, Array | Sequence[str]], names: Iterable[str] = SAME_BITS) -> str:
    """SHA-256 (hex) of the values of the named columns, of those that exist."""
    digest = hashlib.sha256()
    for name in names:
        if name in columns:
            array = np.ascontiguousarray(columns[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


class Shard:
    """One memory-mapped shard.

    Raises:
        ValueError: the file is not a shard, or is truncated.
    """

    def __init__(self, path: Path):
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._map.madvise(mmap.MADV_RANDOM)
            reader = pa.ipc.open_file(pa.py_buffer(self._map))
            if reader.num_record_batches != 1:
                raise pa.ArrowInvalid("more than one record batch")
            self.batch = reader.get_batch(0)
        except (OSError, ValueError) as error:  # pa.ArrowInvalid is a ValueError
            raise ValueError(f"{path}: cannot be read, perhaps truncated ({error})") from None
        self.columns = {
            field.name: _values(self.batch.column(field.name)) for field in self.batch.schema if field.name != "source"
        }
        begin = np.frombuffer(self._map, np.uint8).ctypes.data
        self._extents = {  # offset of a column in the file, and bytes per row
            name: (values.ctypes.data - begin, values.strides[0]) for name, values in self.columns.items()
        }

    def will_need(self, column: str, row: int) -> None:
        """Ask the kernel to read a row ahead. Returns at once."""
        first, size = self._extents[column]
        begin = first + row * size
        page = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)

    def release_pages(self) -> None:
        """Drop the pages from this process's resident memory. They stay in the page cache."""
        self._map.madvise(mmap.MADV_DONTNEED)


class Mapped:
    """The columns of a prepared set on disk. A shard is opened when it is first needed.

    Args:
        files: the shards, in order.
        images: the number of rows of each shard.
    """

    def __init__(self, files: Sequence[Path], images: Sequence[int]):
        self._files, self._ends = files, np.cumsum(images)
        self._shards: dict[int, Shard] = {}

    def take(self, column: str, indices: Tensor) -> Tensor:
        """Copy the rows `indices` (B,) int64 of a column: (B, …)."""
        places = list(self._places(indices))
        for shard, row in places:
            shard.will_need(column, row)
        first = places[0][0].columns[column]
        rows = np.empty((len(places), *first.shape[1:]), first.dtype)
        for number, (shard, row) in enumerate(places):
            rows[number] = shard.columns[column][row]
        for shard in {id(shard): shard for shard, _ in places}.values():
            shard.release_pages()
        return torch.from_numpy(rows)

    def expect(self, column: str, indices: Tensor) -> None:
        """Ask the kernel to read rows ahead. Returns at once."""
        for shard, row in self._places(indices):
            shard.will_need(column, row)

    def _places(self, indices: Tensor) -> Iterable[tuple[Shard, int]]:
        wanted = indices.numpy()
        shards = np.searchsorted(self._ends, wanted, side="right")
        begins = np.concatenate([[0], self._ends[:-1]])
        for shard, row in zip(shards.tolist(), (wanted - begins[shards]).tolist(), strict=True):
            yield self._open(shard), row

    def _open(self, number: int) -> Shard:
        if number not in self._shards:
            self._shards[number] = Shard(self._files[number])
        return self._shards[number]


class Held:
    """The columns of a set in the memory of the host or a GPU: tensors (N, …) by name."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = dict(columns)

    def take(self, column: str, indices: Tensor) -> Tensor:
        """Rows `indices` (B,) int64 of a column, (B, …)."""
        values = self.columns[column]
        return values[indices.to(values.device)]

    def expect(self, column: str, indices: Tensor) -> None:
        """Do nothing: all rows are in memory."""


def _arrow(array: Array) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.shape[1:])
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    width = int(np.prod(array.shape[1:]))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, width))


def _values(array: pa.Array) -> Array:
    """A column's values (N, …), without a copy."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        flat = array.storage.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(len(array), *array.type.shape)
    return array.to_numpy(zero_copy_only=True)
