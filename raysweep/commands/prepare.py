"""`raysweep prepare SOURCE --out PLACE`: images to latents, once, for all runs.

SOURCE is a folder of classes, ImageNet's tar or a folder of its classes' tars, Parquet files as on the Hugging Face
hub, WebDataset's tars, IDX files, `emoji9`, `fashion-mnist`; or latents that REPA, EDM2, LightningDiT or DiT have made.
The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raysweep.cluster.connection import connected
from raysweep.commands.common import guarded
from raysweep.errors import UserError
from raysweep.prepare.encoding import Wanted
from raysweep.prepare.preparation import Job, Preparation, images_per_shard, refuse_other
from raysweep.prepare.sources import Latents, Source, open_source
from raysweep.space.launch import Launch
from raysweep.store.files import Files
from raysweep.uris import public
from trainables.config import ProbeSpec
from trainables.datasets import catalog, checks, prepared
from trainables.datasets.autoencoders import (
    Autoencoder,
    autoencoder_identity,
    normalisation,
    normalised_by,
    open_autoencoder,
)

DETECTORS = {"effnet_lite0": ProbeSpec(detector="effnet_lite0", metrics=("fid",)), "inception": ProbeSpec()}


def main(arguments: list[str] | None = None) -> int:
    """Prepare a data set; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(_prepare, parser().parse_args(arguments))


def _prepare(options: argparse.Namespace, console: Console) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.images_per_shard is not None and options.images_per_shard < 1:
        raise UserError(f"--images-per-shard {options.images_per_shard}: give 1 or more")
    source = open_source(options.source, options.split)
    autoencoder = _autoencoder(options, source)
    shape = _latent_shape(options, source, autoencoder)
    wanted = Wanted(options.size, options.mirrored, options.keep_images, _judged(options, source))
    job = Job(
        source=source.fingerprint(),
        autoencoder=autoencoder_identity(autoencoder),
        size=None if source.latents else options.size,
        mirrored=options.mirrored,
        keep_images=options.keep_images,
        normalise=options.normalise,
        detectors=[spec.detector_name for spec in wanted.judged],
        images_per_shard=options.images_per_shard or images_per_shard(shape, wanted),
    )
    place = Files(options.out)
    done = _finished(place, job)
    if done is None:
        done = _make(options, console, place, Preparation(place, source, wanted, job, shape), autoencoder)
    _show(done, options)
    return 0


def _make(
    options: argparse.Namespace, console: Console, place: Files, preparation: Preparation, autoencoder: Autoencoder
) -> prepared.Prepared:
    items, normalise = len(preparation.source.items), normalisation(autoencoder)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    if preparation.done:
        console.print(f"going on behind {preparation.done:,} of {items:,} images", highlight=False)
    with Progress(*columns, TextColumn("{task.fields[pace]}"), console=console) as bar:
        task = bar.add_task("images", total=items, completed=preparation.done, pace="")
        began, first = time.monotonic(), preparation.done

        def told(done: int, unreadable: int) -> None:
            pace = f"{(done - first) / (time.monotonic() - began):,.0f} images/s"
            bar.update(task, completed=done, pace=pace + (f", {unreadable} unreadable" if unreadable else ""))

        if preparation.done < items:
            with connected(Launch(workers=1), options.address):
                preparation.run(autoencoder, normalise, told)
    _refuse_unreadable(preparation, options)
    if options.normalise == "channels":
        normalised_by(autoencoder, *preparation.channels())
        normalise = normalisation(autoencoder)
    return preparation.finish(autoencoder, normalise)


def _autoencoder(options: argparse.Namespace, source: Source) -> Autoencoder:
    given = options.autoencoder or str(catalog.files("emoji9")[1])
    if not options.autoencoder and source.latents:
        raise UserError("--autoencoder: name the one that made these latents: probes decode with it")
    try:
        return open_autoencoder(given)
    except ValueError as error:
        raise UserError(f"--autoencoder {error}") from None


def _latent_shape(options: argparse.Namespace, source: Source, autoencoder: Autoencoder) -> tuple[int, int, int]:
    config = autoencoder.config
    if source.latents:
        first = next(iter(source.reader(source.items[:1])))
        assert isinstance(first, Latents), "a source of latents reads latents"
        channels, height, width = first.latent.shape[1:]
        if channels != config.latent_channels:
            has = f"{channels} channels, but the autoencoder's have {config.latent_channels}"
            raise UserError(f"--autoencoder {options.autoencoder}: {first.source} has {has}; mixed autoencoders?")
        if options.keep_images:
            raise UserError("--keep-images: there are none, these are latents; leave it out")
        return channels, height, width
    factor = 2 ** (len(config.block_out_channels) - 1)
    if options.size <= 0 or options.size % factor:
        raise UserError(f"--size {options.size}: the autoencoder needs a multiple of {factor}")
    return config.latent_channels, options.size // factor, options.size // factor


def _judged(options: argparse.Namespace, source: Source) -> tuple[ProbeSpec, ...]:
    """The detectors whose statistics are taken: those that were asked for, or those that this machine has."""
    if source.latents:
        if options.detectors:
            raise UserError("--detectors: they look at images, and these are latents; leave this out")
        return ()
    asked = options.detectors
    wanted = list(DETECTORS) if asked is None else [name for name in asked if name != "none"]
    faults = {name: checks.probe_fault(DETECTORS[name]) for name in wanted}
    for name, fault in faults.items():
        if asked and fault:
            raise UserError(f"--detectors {name}: {fault.split(': --set')[0]}")
    return tuple(DETECTORS[name] for name, fault in faults.items() if not fault)


def _finished(place: Files, job: Job) -> prepared.Prepared | None:
    """What lies there already.

    Raises:
        UserError: it is another set, or something else.
    """
    try:
        found = prepared.read(place.uri)
    except prepared.Absent:
        others = [] if Preparation.begun(place) else place.names("")
        if others:
            raise UserError(f"--out {place.uri}: {others[0]} lies there; give an empty place, or a new one") from None
        return None
    except LookupError as error:
        raise UserError(f"--out {error.args[0]}") from None
    refuse_other(Job.model_validate(found.about["job"]), job, place.uri)
    return found


def _refuse_unreadable(preparation: Preparation, options: argparse.Namespace) -> None:
    unreadable = preparation.progress.unreadable
    if unreadable and not options.skip_corrupt:
        some = "".join(f"\n  {source}: {why}" for source, why in unreadable[:20])
        more = f"\n  and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
        raise UserError(
            f"{len(unreadable)} of {len(preparation.source.items):,} images cannot be read; repair them and prepare "
            f"another place, or give --skip-corrupt to leave them out of this one:{some}{more}"
        )
    counts, names = preparation.progress.counts, preparation.source.class_names
    if empty := [names[label] for label, count in enumerate(counts) if not count]:
        raise UserError(f"{options.source}: no readable image of {empty[0]}; every class needs some")


def _show(done: prepared.Prepared, options: argparse.Namespace) -> None:
    about = done.about
    size = sum(file["bytes"] for file in done.files.values())
    told: dict[str, Any] = {
        "place": public(done.location),
        "identity": done.identity,
        "images": about["images"],
        "classes": done.content["num_classes"],
        "latent_shape": list(done.latent_shape),
        "bytes": size,
        "unreadable": len(about["unreadable"]),
    }
    if options.json:
        print(json.dumps(told))
        return
    out, names = Console(), ", ".join(about["job"]["detectors"]) or "none"
    shape, counts = "x".join(map(str, done.latent_shape)), about["class_images"]
    skipped = f", {told['unreadable']} left out" if told["unreadable"] else ""
    spread = f"{min(counts):,} to {max(counts):,}" if min(counts) < max(counts) else f"{counts[0]:,}"
    out.print(
        f"{about['source']}: {about['images']:,} images{skipped}, {len(counts)} classes of {spread}", highlight=False
    )
    out.print(f"latents {shape}, {size / 2**20:,.0f} MiB, statistics for {names}", highlight=False, soft_wrap=True)
    out.print(f"--set trial.data={public(_named(done.location))}", highlight=False, soft_wrap=True)


def _named(place: str) -> str:
    """How a search space calls it."""
    name = place.rstrip("/").rpartition("/")[2]
    return name if prepared.locate(name) == place else place


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="raysweep prepare", description=__doc__)
    found.add_argument("source", metavar="SOURCE")
    found.add_argument("--out", required=True, metavar="PLACE", help="a folder, or a URI such as s3://…")
    found.add_argument(
        "--autoencoder",
        metavar="WHICH",
        help="diffusers' folder, a hub name such as stabilityai/sd-vae-ft-mse, or VA-VAE's .pt (default: emoji9's)",
    )
    found.add_argument("--size", type=int, default=256, metavar="PIXELS", help="default: 256")
    found.add_argument("--mirrored", action="store_true", help="latents of mirror images too, for horizontal_flip")
    found.add_argument("--keep-images", action="store_true", help="the pixels too, for repa")
    found.add_argument(
        "--normalise",
        choices=("autoencoder", "channels"),
        default="autoencoder",
        help="by the autoencoder's own factor, or by mean and deviation of the set's channels, as VA-VAE's are",
    )
    found.add_argument(
        "--detectors",
        nargs="+",
        choices=(*DETECTORS, "none"),
        help="whose statistics probes need (default: those that are here)",
    )
    found.add_argument(
        "--images-per-shard", type=int, metavar="N", help="default: as many as make 64 MiB, at most 4096"
    )
    found.add_argument("--skip-corrupt", action="store_true", help="leave images out that cannot be read")
    found.add_argument("--split", default="train", help="of a set that has several (default: train)")
    found.add_argument("--address", default="local", metavar="ADDRESS", help="of a Ray cluster (default: local)")
    found.add_argument("--json", action="store_true", help="print JSON last on stdout")
    return found
