"""Images to latents on all nodes of a Ray cluster. This is the only module that uses Ray Data.

Tasks on any CPU read chunks of a source. Actors that keep their networks loaded encode them, on GPUs where there are
any. Results come back in order, and Ray Data's memory budget limits how many chunks are under way.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.errors import UserError
from raysweep.prepare.sources import Item, Latents, Picture, Reader, Source
from raysweep.store.files import Files
from trainables.config import ProbeSpec
from trainables.datasets.autoencoders import Normalisation, load_autoencoder
from trainables.evaluation import detectors
from trainables.preparing import CroppedChunk, RowEncoder, ShardRows, as_float16, crop
from trainables.snapshot import best_device

CHUNK = 64  # images that one task reads, encodes and sends
LOCAL_BUDGET = 1 << 30  # bytes in the object store on a small machine, which its owner also uses for other things


@dataclass(frozen=True)
class EncodingOptions:
    """What is made of each image."""

    size: int  # pixels, of the square that is encoded
    mirrored: bool  # whether the mirror image is encoded too
    keep_images: bool  # whether pixels are stored beside latents
    probes: tuple[ProbeSpec, ...]  # the detectors of these probes compute features of the images


def encode_chunks(
    source: Source, chunks: Sequence[Sequence[Item]], options: EncodingOptions, place: str, normalise: Normalisation
) -> Iterator[ShardRows]:
    """Encode chunks of a source, in their order.

    Args:
        place: the folder or URI in which the set is written; it holds the autoencoder.
        normalise: the autoencoder's normalisation.

    Raises:
        UserError: a file of the source cannot be read, or its latents have the wrong shape.
    """
    rows = [{"items": pickle.dumps(list(chunk))} for chunk in chunks]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    without_items = dataclasses.replace(source, items=())
    streamed = _stream.options(scheduling_strategy=here).remote(ray.put(rows), without_items, options, place, normalise)
    for reference in streamed:
        result = pickle.loads(ray.get(reference))
        if isinstance(result, UserError):
            raise result
        yield result


@ray.remote(num_cpus=0, num_returns="streaming", _generator_backpressure_num_objects=8)
def _stream(
    rows: list[dict[str, Any]], source: Source, options: EncodingOptions, place: str, normalise: Normalisation
) -> Iterator[bytes]:
    """The rows of all chunks, pickled. This runs in a process of its own, because Ray Data prints harmless warnings in
    the process that drives it."""
    _configure()
    data, reader = ray.data.from_items(rows, override_num_blocks=len(rows)), source.reader
    if source.latents:
        scaled = normalise if source.scaled else None
        data = data.map(_ReadLatents(reader, scaled, options.mirrored))
    else:
        gpus, cpus = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        if gpus:
            data = data.map(_Crop(reader, options.size))
            pool: Any = {"compute": ActorPoolStrategy(min_size=1, max_size=gpus), "num_gpus": 1}
            data = data.map(_Encode, fn_constructor_args=(None, options, place), **pool)
        else:  # each process reads and encodes: sending pixels between processes would gain nothing
            pool = {"compute": ActorPoolStrategy(size=max(1, min(cpus, len(rows)))), "num_cpus": 1}
            data = data.map(_Encode, fn_constructor_args=(reader, options, place), **pool)
    for row in data.iter_rows():
        yield row["rows"]


class _Crop:
    """Reads and crops a chunk."""

    def __init__(self, reader: Reader, size: int):
        self.reader, self.size = reader, size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"crop": _pickled(lambda: self.crop(row["items"]))}

    def crop(self, items: bytes) -> CroppedChunk:
        return crop(
            [picture for picture in self.reader(pickle.loads(items)) if isinstance(picture, Picture)], self.size
        )


class _Encode:
    """Encodes a chunk that was cropped already, or reads and crops it first where a reader is given."""

    def __init__(self, reader: Reader | None, options: EncodingOptions, place: str):
        device = best_device()
        self._crop = _Crop(reader, options.size) if reader else None
        networks = {spec.detector_name: detectors.create(spec).to(device) for spec in options.probes}
        with Files(place).local_copy("autoencoder") as folder:
            autoencoder = load_autoencoder(folder).to(device)
        self._encoder = RowEncoder(autoencoder, networks, mirrored=options.mirrored, keep_images=options.keep_images)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": _pickled(lambda: self._encode(row))}

    def _encode(self, row: dict[str, Any]) -> ShardRows:
        chunk = self._crop.crop(row["items"]) if self._crop else pickle.loads(row["crop"])
        if isinstance(chunk, UserError):
            raise chunk
        return self._encoder(chunk)


class _ReadLatents:
    """Reads a chunk of latents that were made by other software."""

    def __init__(self, reader: Reader, scaled: Normalisation | None, mirrored: bool):
        self.reader, self.scaled, self.mirrored = reader, scaled, mirrored

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": _pickled(lambda: self._read(row["items"]))}

    def _read(self, items: bytes) -> ShardRows:
        chunk = [latents for latents in self.reader(pickle.loads(items)) if isinstance(latents, Latents)]
        columns = {
            "latent": self._half([latents.latent for latents in chunk]),
            "label": np.array([latents.label for latents in chunk], np.int32),
        }
        if self.mirrored:
            if lacking := [latents.source for latents in chunk if latents.mirrored is None]:
                raise UserError(f"{lacking[0]}: no latents of the mirror image; leave out --mirrored")
            columns["mirrored"] = self._half([latents.mirrored for latents in chunk])
        return ShardRows(columns, tuple(latents.source for latents in chunk))

    def _half(self, moments: list[Any]) -> Any:
        shapes = {array.shape for array in moments}
        if len(shapes) > 1:
            raise UserError(
                f"latents of several shapes, {' and '.join(map(str, sorted(shapes)))}: made by different autoencoders?"
            )
        whole = np.stack(moments)
        if self.scaled is not None:
            shift, scale = (part.numpy() for part in self.scaled)
            whole[:, 0] = whole[:, 0] / scale + shift
            whole[:, 1] = whole[:, 1] / scale
        return as_float16(whole)


def _pickled(compute: Callable[[], Any]) -> bytes:
    """The pickled result for a chunk, or a pickled UserError. If it were raised, Ray Data would wrap it in a long
    traceback."""
    try:
        return pickle.dumps(compute())
    except (UserError, OverflowError, OSError) as error:
        return pickle.dumps(UserError(str(error)))


def _configure() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # raysweep prepare shows its own
    context.execution_options.preserve_order = True
    if ray.cluster_resources().get("CPU", 0) <= 16:
        limits = ray.data.ExecutionResources.for_limits(object_store_memory=LOCAL_BUDGET)
        context.execution_options.resource_limits = limits
    logging.getLogger("ray.data").setLevel(logging.ERROR)
