"""Images to latents on all of a Ray cluster: the only module that knows Ray Data.

Chunks of a source are read by tasks wherever there is a CPU and encoded by actors that keep their networks, on GPUs
where there are any. They come back in order, and no more are under way than Ray Data's budget holds.
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
from trainables.preparing import Cut, Encoder, Rows, as_float16, cut
from trainables.snapshot import best_device

CHUNK = 64  # images that are read, encoded and sent together
LOCAL_BUDGET = 1 << 30  # bytes under way between processes, on a machine that is somebody's own


@dataclass(frozen=True)
class Wanted:
    """What is to be made of each image."""

    size: int
    mirrored: bool
    keep_images: bool
    judged: tuple[ProbeSpec, ...]  # through whose detectors the images are looked at


def encoded(
    source: Source, chunks: Sequence[Sequence[Item]], wanted: Wanted, place: str, normalise: Normalisation
) -> Iterator[Rows]:
    """The chunks' rows, in their order.

    Args:
        place: the set in the making, whose autoencoder encodes.
        normalise: of that autoencoder.

    Raises:
        UserError: a source's file cannot be read, or its latents do not fit.
    """
    rows = [{"items": pickle.dumps(list(chunk))} for chunk in chunks]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    without = dataclasses.replace(source, items=())
    streamed = _streamed.options(scheduling_strategy=here).remote(ray.put(rows), without, wanted, place, normalise)
    for reference in streamed:
        found = pickle.loads(ray.get(reference))
        if isinstance(found, UserError):
            raise found
        yield found


@ray.remote(num_cpus=0, num_returns="streaming", _generator_backpressure_num_objects=8)
def _streamed(
    rows: list[dict[str, Any]], source: Source, wanted: Wanted, place: str, normalise: Normalisation
) -> Iterator[bytes]:
    """All chunks' rows, pickled. A process of its own, as Ray Data has its driver print what is nobody's fault."""
    _configure()
    data, reader = ray.data.from_items(rows, override_num_blocks=len(rows)), source.reader
    if source.latents:
        scaled = normalise if source.scaled else None
        data = data.map(_Import(reader, scaled, wanted.mirrored))
    else:
        gpus, cpus = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        if gpus:
            data = data.map(_Cut(reader, wanted.size))
            pool: Any = {"compute": ActorPoolStrategy(min_size=1, max_size=gpus), "num_gpus": 1}
            data = data.map(_Encode, fn_constructor_args=(None, wanted, place), **pool)
        else:  # one process reads and encodes: nothing is gained by sending pictures about
            pool = {"compute": ActorPoolStrategy(size=max(1, min(cpus, len(rows)))), "num_cpus": 1}
            data = data.map(_Encode, fn_constructor_args=(reader, wanted, place), **pool)
    for row in data.iter_rows():
        yield row["rows"]


class _Cut:
    """Read and cut a chunk."""

    def __init__(self, reader: Reader, size: int):
        self.reader, self.size = reader, size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"cut": _answer(lambda: self.cut(row["items"]))}

    def cut(self, items: bytes) -> Cut:
        return cut([picture for picture in self.reader(pickle.loads(items)) if isinstance(picture, Picture)], self.size)


class _Encode:
    """Encode a chunk that was cut, or that this has to read and cut itself."""

    def __init__(self, reader: Reader | None, wanted: Wanted, place: str):
        device = best_device()
        self._cut = _Cut(reader, wanted.size) if reader else None
        networks = {spec.detector_name: detectors.create(spec).to(device) for spec in wanted.judged}
        with Files(place).at_hand("autoencoder") as folder:
            autoencoder = load_autoencoder(folder).to(device)
        self._encoder = Encoder(autoencoder, networks, mirrored=wanted.mirrored, keep_images=wanted.keep_images)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": _answer(lambda: self._encode(row))}

    def _encode(self, row: dict[str, Any]) -> Rows:
        chunk = self._cut.cut(row["items"]) if self._cut else pickle.loads(row["cut"])
        if isinstance(chunk, UserError):
            raise chunk
        return self._encoder(chunk)


class _Import:
    """Read a chunk of latents that others have made."""

    def __init__(self, reader: Reader, scaled: Normalisation | None, mirrored: bool):
        self.reader, self.scaled, self.mirrored = reader, scaled, mirrored

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": _answer(lambda: self._read(row["items"]))}

    def _read(self, items: bytes) -> Rows:
        found = [latents for latents in self.reader(pickle.loads(items)) if isinstance(latents, Latents)]
        columns = {
            "latent": self._half([latents.latent for latents in found]),
            "label": np.array([latents.label for latents in found], np.int32),
        }
        if self.mirrored:
            if lacking := [latents.source for latents in found if latents.mirrored is None]:
                raise UserError(f"{lacking[0]}: no latents of the mirror image; leave --mirrored out")
            columns["mirrored"] = self._half([latents.mirrored for latents in found])
        return Rows(columns, tuple(latents.source for latents in found))

    def _half(self, moments: list[Any]) -> Any:
        shapes = {each.shape for each in moments}
        if len(shapes) > 1:
            raise UserError(f"latents of several shapes: {' and '.join(map(str, sorted(shapes)))}; mixed autoencoders?")
        whole = np.stack(moments)
        if self.scaled is not None:
            shift, scale = (part.numpy() for part in self.scaled)
            whole[:, 0] = whole[:, 0] / scale + shift
            whole[:, 1] = whole[:, 1] / scale
        return as_float16(whole)


def _answer(made: Callable[[], Any]) -> bytes:
    """What a chunk came to, pickled; or the user's mistake in it, which Ray Data would wrap in a page of its own."""
    try:
        return pickle.dumps(made())
    except (UserError, OverflowError, OSError) as error:
        return pickle.dumps(UserError(str(error)))


def _configure() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours says more
    context.execution_options.preserve_order = True
    if ray.cluster_resources().get("CPU", 0) <= 16:
        limits = ray.data.ExecutionResources.for_limits(object_store_memory=LOCAL_BUDGET)
        context.execution_options.resource_limits = limits
    logging.getLogger("ray.data").setLevel(logging.ERROR)
