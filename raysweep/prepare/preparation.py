"""A preparation from its first image to its manifest: shards in order, and what is known of them so far.

`progress.json` in the place that is being made says how far it is: the shards that are whole, the images that could not
be read, sums for statistics; `progress-<shards>.safetensors` beside it has what detectors saw. The same command goes on
behind the last shard that is named there.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from raysweep.errors import UserError
from raysweep.prepare.encoding import CHUNK, Wanted, encoded
from raysweep.prepare.sources import Item, Source
from raysweep.store.files import Files
from trainables.datasets.autoencoders import Autoencoder, Normalisation, save_autoencoder
from trainables.datasets.latent_files import content_sha256, write_shard
from trainables.datasets.prepared import MANIFEST, Prepared
from trainables.evaluation.reference import Gatherings
from trainables.preparing import Rows, Seen

PROGRESS = "progress.json"
SHARD_BYTES = 1 << 26  # about so much each; it is in memory while it is made
MOST_IMAGES = 4096  # of a shard
SAVE_EVERY_S = 20.0
Told = Callable[[int, int], None]  # images that are done, and of those unreadable


class Job(BaseModel):
    """What a preparation is of: another one may not go on in its place."""

    source: str  # the fingerprint of its list
    autoencoder: str
    size: int | None
    mirrored: bool
    keep_images: bool
    normalise: str
    detectors: list[str]
    images_per_shard: int


class Progress(BaseModel):
    """How far a preparation is."""

    job: Job
    shards: list[dict[str, Any]] = []  # images, sha256 of content and of the file, bytes; pictures where kept
    unreadable: list[tuple[str, str]] = []  # (source, why)
    counts: list[int]  # of images, by class
    sums: list[float]  # over all values of each channel
    squares: list[float]  # of them, the posterior's variance included


def images_per_shard(latent_shape: tuple[int, int, int], wanted: Wanted) -> int:
    """So many that a shard has about `SHARD_BYTES`; whole chunks."""
    row = int(np.prod(latent_shape)) * 2 * 2 * (1 + wanted.mirrored) + wanted.keep_images * 3 * wanted.size**2
    return max(1, min(MOST_IMAGES, SHARD_BYTES // row) // CHUNK) * CHUNK


class Preparation:
    """One data set in the making.

    Args:
        place: where it is to lie; made by this if need be.

    Raises:
        UserError: another one was begun there.
    """

    def __init__(self, place: Files, source: Source, wanted: Wanted, job: Job, latent_shape: tuple[int, int, int]):
        self.place, self.source, self.wanted, self.latent_shape = place, source, wanted, latent_shape
        channels, classes = latent_shape[0], len(source.class_names)
        found = place.sealed(PROGRESS)
        if found is None or not found["shards"]:  # nothing was made there, whatever it was to be
            nothing = [0.0] * channels
            self.progress = Progress(job=job, counts=[0] * classes, sums=nothing, squares=list(nothing))
            self.seen = Gatherings(len(source.items))
            place.seal(PROGRESS, self.progress.model_dump(mode="json"))
        else:
            self.progress = Progress.model_validate(found)
            refuse_other(self.progress.job, job, place.uri)
            self.seen = Gatherings.load(place.read(self._statistics()), len(source.items))

    @staticmethod
    def begun(place: Files) -> bool:
        """Whether one was begun there and not finished."""
        return place.is_there(PROGRESS)

    @property
    def done(self) -> int:
        """How many of the source's images have been seen to."""
        return min(len(self.source.items), len(self.progress.shards) * self.progress.job.images_per_shard)

    def run(self, autoencoder: Autoencoder, normalise: Normalisation, told: Told) -> None:
        """Make the shards that are missing."""
        per_shard, rest = self.progress.job.images_per_shard, self.source.items[self.done :]
        chunks: list[list[Item]] = []
        for first in range(0, len(rest), per_shard):
            shard = rest[first : first + per_shard]
            chunks += [list(shard[begin : begin + CHUNK]) for begin in range(0, len(shard), CHUNK)]
        if not chunks:
            return
        self._put_autoencoder(autoencoder)
        rows = encoded(self.source, chunks, self.wanted, self.place.uri, normalise)
        saved = -SAVE_EVERY_S
        while self.done < len(self.source.items):
            count = min(per_shard, len(self.source.items) - self.done)
            self._make_shard(rows, -(-count // CHUNK), told)
            if time.monotonic() - saved > SAVE_EVERY_S or self.done == len(self.source.items):
                self.save()
                saved = time.monotonic()

    def _put_autoencoder(self, autoencoder: Autoencoder) -> dict[str, dict[str, Any]]:
        files = {}
        with tempfile.TemporaryDirectory() as temporary:
            for name in save_autoencoder(autoencoder, Path(temporary)):
                file, there = Path(temporary, name), f"autoencoder/{name}"
                files[there] = {"bytes": file.stat().st_size, "sha256": self.place.copy_in(file, there)}
        return files

    def _make_shard(self, rows: Iterator[Rows], chunks: int, told: Told) -> None:
        columns: dict[str, list[Any]] = {}
        progress, done = self.progress, self.done
        sources: list[str] = []
        seen: list[Seen] = []
        for _ in range(chunks):
            chunk = next(rows)
            for name, values in chunk.columns.items():
                columns.setdefault(name, []).append(values)
            sources += chunk.sources
            progress.unreadable += chunk.unreadable
            seen += [chunk.seen] if chunk.seen else []
            done += len(chunk.sources) + len(chunk.unreadable)
            told(done, len(progress.unreadable))
        self.seen.update(seen)  # together: each part costs the square of the features' width
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        facts: dict[str, Any] = {"images": len(sources)}
        if sources:
            if whole["latent"].shape[2:] != self.latent_shape:
                has = f"latents of shape {whole['latent'].shape[2:]}, others {self.latent_shape}"
                raise UserError(f"{sources[0]}: {has}; mixed autoencoders?")
            self._sum(whole)
            facts["sha256"] = content_sha256(whole)
            if "image" in whole:
                facts["pictures"] = content_sha256(whole, ["image"])
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "shard.arrow"
                write_shard(file, {**whole, "source": sources})
                name = f"shards/{sum('file' in shard for shard in progress.shards):05}.arrow"
                facts["file"] = {"bytes": file.stat().st_size, "sha256": self.place.copy_in(file, name)}
        progress.shards.append(facts)

    def _sum(self, columns: dict[str, Any]) -> None:
        progress = self.progress
        moments = columns["latent"].astype(np.float64)
        for label, count in zip(*np.unique(columns["label"], return_counts=True), strict=True):
            progress.counts[label] += int(count)
        progress.sums = (moments[:, 0].sum(axis=(0, 2, 3)) + progress.sums).tolist()
        squares = np.square(moments).sum(axis=(0, 1, 3, 4))  # of means and deviations together: E[x²]
        progress.squares = (squares + progress.squares).tolist()

    def save(self) -> None:
        """Note how far it is."""
        before = self.place.sealed(PROGRESS)
        self.place.write(self._statistics(), self.seen.save())
        self.place.seal(PROGRESS, self.progress.model_dump(mode="json"))
        if before and len(before["shards"]) != len(self.progress.shards):
            self.place.delete(f"progress-{len(before['shards']):05}.safetensors")

    def _statistics(self) -> str:
        return f"progress-{len(self.progress.shards):05}.safetensors"

    def channels(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the latents, as the autoencoder gives them."""
        values = sum(self.progress.counts) * self.latent_shape[1] * self.latent_shape[2]
        mean = np.array(self.progress.sums) / values
        return mean.tolist(), np.sqrt(np.array(self.progress.squares) / values - mean**2).tolist()

    def finish(self, autoencoder: Autoencoder, normalise: Normalisation) -> Prepared:
        """Write all that stands beside the shards, the manifest last.

        Args:
            autoencoder: configured so that probes undo `normalise`.
        """
        progress, job = self.progress, self.progress.job
        shards = [shard for shard in progress.shards if shard["images"]]
        files = {f"shards/{number:05}.arrow": shard["file"] for number, shard in enumerate(shards)}
        files |= self._put_autoencoder(autoencoder)
        with tempfile.TemporaryDirectory() as temporary:
            for name in self.seen.save_references(Path(temporary)):
                file = Path(temporary, name)
                files[name] = {"bytes": file.stat().st_size, "sha256": self.place.copy_in(file, name)}
        mean, std = self.channels()
        channels = self.latent_shape[0]
        shift, scale = ((part.expand(channels, 1, 1)).flatten().tolist() for part in normalise)
        content = {
            "latent_shape": list(self.latent_shape),
            "num_classes": len(self.source.class_names),
            "mirrored": job.mirrored,
            "shift": shift,
            "scale": scale,
            "autoencoder": job.autoencoder,
            "shards": [{"images": shard["images"], "sha256": shard["sha256"]} for shard in shards],
        }
        pictures = "".join(shard.get("pictures", "") for shard in shards)
        about = {
            "source": self.source.about,
            "images": sum(shard["images"] for shard in shards),
            "size": job.size,
            "class_names": list(self.source.class_names),
            "class_images": progress.counts,
            "channel_mean": mean,
            "channel_std": std,
            "unreadable": progress.unreadable,
            "made_by": {"machine": platform.machine(), **{name: version(name) for name in ("torch", "diffusers")}},
            "job": job.model_dump(mode="json"),
        }
        digest = hashlib.sha256(pictures.encode()).hexdigest() if pictures else None
        prepared = Prepared(self.place.uri, content, digest, files, about)
        self.place.write(MANIFEST, prepared.spell())
        for name in self.place.names(""):
            if name.startswith("progress"):  # with what a process that was killed in the middle of writing has left
                self.place.delete(name)
        return prepared


def refuse_other(begun: Job, job: Job, place: str) -> None:
    """Nothing, where two jobs are one.

    Raises:
        UserError: they differ; the message says in what.
    """
    if differing := [name for name in Job.model_fields if getattr(begun, name) != getattr(job, name)]:
        told = " and ".join(name.replace("_", " ") for name in differing)
        raise UserError(f"--out {place}: a set with another {told} lies or was begun there; give another place")
