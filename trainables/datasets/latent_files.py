"""Shards of a prepared data set: Arrow files of one record batch, a row an image, read where they lie.

Columns are `latent` (2, C, H, W) float16, the posterior's mean and standard deviation as the autoencoder gives them;
`label` int32; `source` string, where the image came from; and where asked for `mirrored`, as `latent` of the mirror
image, `image` (3, h, w) uint8, and `features` (T, D) float16 of an encoder with `features_mirrored`. An Arrow reader
of any language sees the shapes: they are in the schema.

A mapped file costs no memory of its own: what is read stays in the page cache, which all processes of a host share.
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
SAME_BITS = ("latent", "mirrored", "label")  # what training's numbers follow from, unless a method looks at more


def write_shard(path: Path, columns: Mapping[str, Array | Sequence[str]]) -> None:
    """Write one shard; arrays are (N, …), `source` a list of N strings."""
    arrays = {
        name: pa.array(values, pa.string()) if name == "source" else _arrow(np.asarray(values))
        for name, values in columns.items()
    }
    batch = pa.record_batch(arrays)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def content_sha256(columns: Mapping[str, Array | Sequence[str]], names: Iterable[str] = SAME_BITS) -> str:
    """SHA-256 (hex) of the values of those of the columns that are there, whatever file they lie in."""
    digest = hashlib.sha256()
    for name in names:
        if name in columns:
            array = np.ascontiguousarray(columns[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


class Shard:
    """One mapped file.

    Raises:
        ValueError: it is not a shard, or a torn one.
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
            raise ValueError(f"{path}: cannot be read, perhaps torn ({error})") from None
        self.columns = {
            field.name: _values(self.batch.column(field.name)) for field in self.batch.schema if field.name != "source"
        }
        begin = np.frombuffer(self._map, np.uint8).ctypes.data
        self._extents = {  # where in the file a column begins, and the bytes of a row
            name: (values.ctypes.data - begin, values.strides[0]) for name, values in self.columns.items()
        }

    def will_need(self, column: str, row: int) -> None:
        """Tell the kernel to have a row at hand soon; returns at once."""
        first, size = self._extents[column]
        begin = first + row * size
        page = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)

    def let_go(self) -> None:
        """Give pages back that were looked at: they stay in the page cache, and out of this process's account."""
        self._map.madvise(mmap.MADV_DONTNEED)


class Mapped:
    """The columns of a prepared set, from its shards. One is opened when it is first needed.

    Args:
        files: the shards, in order; `images`: how many rows each has.
    """

    def __init__(self, files: Sequence[Path], images: Sequence[int]):
        self._files, self._ends = files, np.cumsum(images)
        self._shards: dict[int, Shard] = {}

    def take(self, column: str, indices: Tensor) -> Tensor:
        """Rows `indices` (B,) int64 of a column, (B, …), as a copy."""
        places = list(self._places(indices))
        for shard, row in places:
            shard.will_need(column, row)
        first = places[0][0].columns[column]
        rows = np.empty((len(places), *first.shape[1:]), first.dtype)
        for number, (shard, row) in enumerate(places):
            rows[number] = shard.columns[column][row]
        for shard in {id(shard): shard for shard, _ in places}.values():
            shard.let_go()
        return torch.from_numpy(rows)

    def expect(self, column: str, indices: Tensor) -> None:
        """Have rows read ahead, without waiting for them."""
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
    """The columns of a set in memory, or on a GPU: tensors (N, …) by name."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = dict(columns)

    def take(self, column: str, indices: Tensor) -> Tensor:
        """Rows `indices` (B,) int64 of a column, (B, …)."""
        values = self.columns[column]
        return values[indices.to(values.device)]

    def expect(self, column: str, indices: Tensor) -> None:
        """Nothing: all is here."""


def _arrow(array: Array) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.shape[1:])
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    width = int(np.prod(array.shape[1:]))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, width))


def _values(array: pa.Array) -> Array:
    """A column's values (N, …) where they lie."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        flat = array.storage.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(len(array), *array.type.shape)
    return array.to_numpy(zero_copy_only=True)
