"""`raysweep prepare SOURCE --out PLACE`: encode images to latents once, for all runs that train on them.

SOURCE is a folder of classes, ImageNet's tar or a folder of its classes' tars, Parquet files as on the Hugging Face
hub, WebDataset's tars, IDX files, `emoji9`, `fashion-mnist`; or latents that REPA, EDM2, LightningDiT or DiT made.
The same command continues an interrupted preparation.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import time
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raysweep.cluster.connection import connected
from raysweep.commands.common import Parser, guarded, number_type
from raysweep.prepare.preparation import Preparation
from raysweep.prepare.request import DETECTORS, Request, open_request
from raysweep.space.launch import Launch
from trainables.datasets import prepared
from trainables.datasets.prepared import Prepared
from trainables.location import Location
from trainables.redaction import public


def main(arguments: list[str] | None = None) -> int:
    """Prepare a data set; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(_prepare, parser().parse_args(arguments))


def _prepare(options: argparse.Namespace, console: Console) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_request(Request(**{name: getattr(options, name) for name in Request.__dataclass_fields__}))
    if isinstance(opened, Preparation):
        _run(opened, options.address, console)
        opened.refuse_unreadable(options.skip_corrupt)
        opened = opened.finish()
    _show(opened, options.json)


def _run(preparation: Preparation, address: str, console: Console) -> None:
    """Encode all images, with a progress bar."""
    items, first = len(preparation.source.items), preparation.done
    if first == items:
        return
    if first:
        console.print(f"continuing after {first:,} of {items:,} images", highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[pace]}"), console=console) as bar:
        task = bar.add_task("images", total=items, completed=first, pace="")
        began = time.monotonic()

        def notify(done: int, unreadable: int) -> None:
            pace = f"{(done - first) / (time.monotonic() - began):,.0f} images/s"
            bar.update(task, completed=done, pace=pace + (f", {unreadable} unreadable" if unreadable else ""))

        with connected(Launch(workers=1), address):
            preparation.run(notify)


def _show(finished: Prepared, as_json: bool) -> None:
    about = finished.about
    size = sum(file["bytes"] for file in finished.files.values())
    facts: dict[str, Any] = {
        "place": public(finished.location),
        "identity": finished.identity,
        "images": about["images"],
        "classes": finished.content["num_classes"],
        "latent_shape": list(finished.latent_shape),
        "bytes": size,
        "unreadable": len(about["unreadable"]),
    }
    if as_json:
        print(json.dumps(facts))
        return
    out, names = Console(), ", ".join(about["job"]["detectors"]) or "none"
    shape, counts = "x".join(map(str, finished.latent_shape)), about["class_images"]
    skipped = f", {facts['unreadable']} left out" if facts["unreadable"] else ""
    spread = f"{min(counts):,} to {max(counts):,}" if min(counts) < max(counts) else f"{counts[0]:,}"
    out.print(
        f"{about['source']}: {about['images']:,} images{skipped}, {len(counts)} classes of {spread}", highlight=False
    )
    out.print(f"latents {shape}, {size / 2**20:,.0f} MiB, statistics for {names}", highlight=False, soft_wrap=True)
    data = yaml.safe_dump(public(_data_name(finished.location)), width=math.inf).partition("\n")[0]
    out.print(f"--set {shlex.quote(f'trial.data={data}')}", highlight=False, soft_wrap=True, markup=False)


def _data_name(place: str) -> str:
    """What a search space writes for `trial.data`."""
    location = Location.parse(place)
    name = location.path.rpartition("/")[2]
    try:
        by_name = prepared.locate(name)
    except LookupError:
        return place
    return name if by_name and Location.parse(by_name) == location else place


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep prepare", description=__doc__)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--out", required=True, metavar="PLACE", help="a folder, or a URI such as s3://…")
    parser.add_argument(
        "--autoencoder",
        metavar="WHICH",
        help="a folder in diffusers' format, a name on the Hugging Face hub such as stabilityai/sd-vae-ft-mse, or "
        "VA-VAE's .pt (default: that of emoji9)",
    )
    count = number_type(1, kind=int)
    parser.add_argument(
        "--size", type=count, default=256, metavar="PIXELS", help="side of the encoded square (default: 256)"
    )
    parser.add_argument("--mirrored", action="store_true", help="also encode mirror images, for horizontal_flip")
    parser.add_argument("--keep-images", action="store_true", help="also keep the pixels, for repa")
    parser.add_argument(
        "--normalise",
        choices=("autoencoder", "channels"),
        default="autoencoder",
        help="by the autoencoder's own factor, or by the mean and standard deviation of each channel, as VA-VAE does "
        "(default: autoencoder)",
    )
    parser.add_argument(
        "--detectors",
        nargs="+",
        choices=(*DETECTORS, "none"),
        help="compute the statistics that probes with these detectors need (default: the detectors on this machine)",
    )
    parser.add_argument(
        "--images-per-shard",
        type=count,
        metavar="N",
        help="images in a shard (default: about 64 MiB, at most 4096 images)",
    )
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--split", default="train", help="split to prepare, of a set that has several (default: train)")
    parser.add_argument(
        "--address",
        default="local",
        metavar="ADDRESS",
        help="address of a Ray cluster; local starts one (default: local)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON last on stdout")
    return parser
