"""The preparation of a data set, from its first image to its manifest: shards in order, and statistics of them.

`progress.json` in the place that is being written lists the complete shards, the images that could not be read, and
sums for statistics. `progress-<shards>.safetensors` beside it holds the statistics of the detectors' features. The same
command continues after the last shard in that list.
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
from raysweep.prepare.encoding import CHUNK, EncodingOptions, encode_chunks
from raysweep.prepare.sources import Item, Source
from raysweep.store.files import Files
from trainables.datasets.autoencoders import Autoencoder, normalisation, normalised_by, save_autoencoder
from trainables.datasets.latent_files import content_sha256, write_shard
from trainables.datasets.prepared import MANIFEST, Prepared
from trainables.evaluation.reference import ReferenceBuilders
from trainables.preparing import DetectorFeatures, ShardRows

PROGRESS = "progress.json"
SHARD_BYTES = 1 << 26  # approximate size of a shard, which is in memory while it is made
MOST_IMAGES = 4096  # in a shard
SAVE_EVERY_S = 20.0
Notify = Callable[[int, int], None]  # (images that are done, how many of them are unreadable)


class PreparationConfig(BaseModel):
    """What decides the content of a prepared set. A preparation may continue another only if all fields are equal."""

    source: str  # fingerprint of the list of images
    autoencoder: str
    size: int | None
    mirrored: bool
    keep_images: bool
    normalise: str
    detectors: list[str]
    images_per_shard: int


class Progress(BaseModel):
    """How far a preparation has come."""

    job: PreparationConfig
    shards: list[dict[str, Any]] = []  # images; SHA-256 of the content, of the file and of kept pictures; bytes
    unreadable: list[tuple[str, str]] = []  # (source, why)
    counts: list[int]  # images of each class
    sums: list[float]  # sum of the values of each channel
    squares: list[float]  # sum of their squares, the posterior's variance included


def images_per_shard(latent_shape: tuple[int, int, int], options: EncodingOptions) -> int:
    """How many images make a shard of about `SHARD_BYTES`, rounded down to whole chunks."""
    row = int(np.prod(latent_shape)) * 2 * 2 * (1 + options.mirrored) + options.keep_images * 3 * options.size**2
    return max(1, min(MOST_IMAGES, SHARD_BYTES // row) // CHUNK) * CHUNK


class Preparation:
    """A data set that is being prepared.

    Args:
        place: where the set is written; created where it does not exist.
        latent_shape: (C, H, W) of one image's latents.

    Raises:
        UserError: a preparation with another configuration was begun there.
    """

    def __init__(
        self,
        place: Files,
        source: Source,
        options: EncodingOptions,
        config: PreparationConfig,
        autoencoder: Autoencoder,
        latent_shape: tuple[int, int, int],
    ):
        self.place, self.source, self.options = place, source, options
        self.autoencoder, self.latent_shape = autoencoder, latent_shape
        channels, classes = latent_shape[0], len(source.class_names)
        saved = place.read_sealed(PROGRESS)
        if saved is None or not saved["shards"]:  # a preparation without a shard may be replaced by any other
            zeros = [0.0] * channels
            self.progress = Progress(job=config, counts=[0] * classes, sums=zeros, squares=list(zeros))
            self.features = ReferenceBuilders(len(source.items))
            place.write_sealed(PROGRESS, self.progress.model_dump(mode="json"))
        else:
            self.progress = Progress.model_validate(saved)
            refuse_other(self.progress.job, config, place.uri)
            self.features = ReferenceBuilders.load(place.read(self._statistics()), len(source.items))

    @staticmethod
    def in_progress(place: Files) -> bool:
        """Whether a preparation was begun there and not finished."""
        return place.exists(PROGRESS)

    @property
    def done(self) -> int:
        """How many of the source's images are in complete shards, or could not be read."""
        return min(len(self.source.items), len(self.progress.shards) * self.progress.job.images_per_shard)

    def run(self, notify: Notify) -> None:
        """Make the shards that are missing, on the Ray cluster that this process is connected to."""
        per_shard, rest = self.progress.job.images_per_shard, self.source.items[self.done :]
        chunks: list[list[Item]] = []
        for first in range(0, len(rest), per_shard):
            shard = rest[first : first + per_shard]
            chunks += [list(shard[begin : begin + CHUNK]) for begin in range(0, len(shard), CHUNK)]
        if not chunks:
            return
        self._put_autoencoder()
        rows = encode_chunks(self.source, chunks, self.options, self.place.uri, normalisation(self.autoencoder))
        saved = -SAVE_EVERY_S
        while self.done < len(self.source.items):
            count = min(per_shard, len(self.source.items) - self.done)
            self._make_shard(rows, -(-count // CHUNK), notify)
            if time.monotonic() - saved > SAVE_EVERY_S or self.done == len(self.source.items):
                self.save()
                saved = time.monotonic()

    def _put_autoencoder(self) -> dict[str, dict[str, Any]]:
        files = {}
        with tempfile.TemporaryDirectory() as temporary:
            for name in save_autoencoder(self.autoencoder, Path(temporary)):
                file, target = Path(temporary, name), f"autoencoder/{name}"
                files[target] = {"bytes": file.stat().st_size, "sha256": self.place.copy_in(file, target)}
        return files

    def _make_shard(self, rows: Iterator[ShardRows], chunks: int, notify: Notify) -> None:
        columns: dict[str, list[Any]] = {}
        progress, done = self.progress, self.done
        sources: list[str] = []
        features: list[DetectorFeatures] = []
        for _ in range(chunks):
            chunk = next(rows)
            for name, values in chunk.columns.items():
                columns.setdefault(name, []).append(values)
            sources += chunk.sources
            progress.unreadable += chunk.unreadable
            features += [chunk.features] if chunk.features else []
            done += len(chunk.sources) + len(chunk.unreadable)
            notify(done, len(progress.unreadable))
        self.features.update(features)  # in one call: each costs the square of the features' width
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        facts: dict[str, Any] = {"images": len(sources)}
        if sources:
            if whole["latent"].shape[2:] != self.latent_shape:
                has = f"its latents have the shape {whole['latent'].shape[2:]}, others {self.latent_shape}"
                raise UserError(f"{sources[0]}: {has}: made by different autoencoders?")
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
        """Save the progress, with the detectors' statistics."""
        before = self.place.read_sealed(PROGRESS)
        self.place.write(self._statistics(), self.features.save())
        self.place.write_sealed(PROGRESS, self.progress.model_dump(mode="json"))
        if before and len(before["shards"]) != len(self.progress.shards):
            self.place.delete(f"progress-{len(before['shards']):05}.safetensors")

    def _statistics(self) -> str:
        return f"progress-{len(self.progress.shards):05}.safetensors"

    def channels(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the latents, before normalisation."""
        values = sum(self.progress.counts) * self.latent_shape[1] * self.latent_shape[2]
        mean = np.array(self.progress.sums) / values
        return mean.tolist(), np.sqrt(np.array(self.progress.squares) / values - mean**2).tolist()

    def refuse_unreadable(self, skip_corrupt: bool) -> None:
        """Check that enough images could be read.

        Raises:
            UserError: some could not, and `skip_corrupt` is not set; or a class has no image left.
        """
        unreadable = self.progress.unreadable
        if unreadable and not skip_corrupt:
            some = "".join(f"\n  {source}: {why}" for source, why in unreadable[:20])
            more = f"\n  and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
            raise UserError(
                f"{len(unreadable)} of {len(self.source.items):,} images cannot be read; repair them and prepare "
                f"another place, or leave them out with --skip-corrupt:{some}{more}"
            )
        names = self.source.class_names
        if empty := [names[label] for label, count in enumerate(self.progress.counts) if not count]:
            raise UserError(f"{self.source.about}: no readable image of {empty[0]}; every class needs some")

    def finish(self) -> Prepared:
        """Write everything beside the shards, the manifest last."""
        progress, job = self.progress, self.progress.job
        if job.normalise == "channels":
            normalised_by(self.autoencoder, *self.channels())
        shards = [shard for shard in progress.shards if shard["images"]]
        files = {f"shards/{number:05}.arrow": shard["file"] for number, shard in enumerate(shards)}
        files |= self._put_autoencoder()
        with tempfile.TemporaryDirectory() as temporary:
            for name in self.features.save_references(Path(temporary)):
                file = Path(temporary, name)
                files[name] = {"bytes": file.stat().st_size, "sha256": self.place.copy_in(file, name)}
        mean, std = self.channels()
        channels = self.latent_shape[0]
        shift, scale = (part.expand(channels, 1, 1).flatten().tolist() for part in normalisation(self.autoencoder))
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
            if name.startswith("progress"):  # including the files of a process that was killed while writing
                self.place.delete(name)
        return prepared


def refuse_other(begun: PreparationConfig, config: PreparationConfig, place: str) -> None:
    """Refuse to continue a preparation, or to take a finished set, that differs from what is asked for.

    Raises:
        UserError: the message names the differences.
    """
    if differing := [name for name in PreparationConfig.model_fields if getattr(begun, name) != getattr(config, name)]:
        names = " and ".join(name.replace("_", " ") for name in differing)
        raise UserError(f"--out {place}: a set with another {names} is there or was begun there; give another place")
