"""`raysweep features CHECKPOINT…`: draw the features of a backbone's blocks, and those that it would give a student.

blocks.png     each block's tokens as colours (their first three principal components), by time and checkpoint
guidance.png   t-SNE of the guiding features at each guidance scale, coloured by class
features.json  how well the guiding features separate the classes, in numbers
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from raysweep.commands.checkpoints import add_checkpoint_options, open_checkpoint
from raysweep.commands.common import Parser, guarded, number_type
from raysweep.errors import UserError
from raysweep.report import features
from raysweep.store.snapshots import choose_data
from raysweep.store.store import Store
from trainables import snapshot
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache


def main(arguments: list[str] | None = None) -> int:
    """Draw the pictures; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(draw, parser().parse_args(arguments))


def draw(options: argparse.Namespace, console: Console) -> None:
    """Open the checkpoints and write the three files."""
    if not next(place for place in (options.out, *options.out.absolute().parents) if place.exists()).is_dir():
        raise UserError(f"--out {options.out}: a file is in the way; give a folder")
    store = Store(options.storage)
    checkpoints = [(name, open_checkpoint(name, store, options)) for name in options.checkpoints]
    data = choose_data([opened for _, opened in checkpoints], options.data)
    autoencoder = WorkerCache(Context(snapshot.best_device()), store.cache).autoencoder(data.name)
    view = features.View(
        times=options.times,
        blocks=options.blocks,
        images=options.images,
        scales=options.scales,
        at=options.at,
        block=options.block,
        points=options.points,
        seed=options.seed,
    )
    with console.status("") as status:
        features.write(checkpoints, view, data, autoencoder, options.out, status.update)
    for name in features.FILES:
        Console().print(f"{name}: {options.out / name}", highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="raysweep features", description=__doc__, formatter_class=raw)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="keys, folders or files; shown by step")
    add_checkpoint_options(parser)
    block, time, count = number_type(kind=int), number_type(0, 1), number_type(1, kind=int)
    parser.add_argument(
        "--blocks",
        type=block,
        nargs="+",
        metavar="K",
        help="blocks in blocks.png, counted from 1 (default: six, evenly spaced)",
    )
    times = [0.1, 0.3, 0.5, 0.7]
    parser.add_argument(
        "--times",
        type=time,
        nargs="+",
        default=times,
        metavar="T",
        help="times in blocks.png; 0 is data (default: 0.1 0.3 0.5 0.7)",
    )
    parser.add_argument("--images", type=count, default=8, metavar="N", help="images in blocks.png (default: 8)")
    parser.add_argument("--block", type=block, metavar="K", help="the teacher's guiding block (default: 2/3 of depth)")
    scales = [0.0, 1.0, 10.0, 30.0]
    parser.add_argument(
        "--scales",
        type=number_type(),
        nargs="+",
        default=scales,
        metavar="W",
        help="guidance scales ω in guidance.png (default: 0 1 10 30)",
    )
    parser.add_argument("--at", type=time, default=0.5, metavar="T", help="time of guidance.png (default: 0.5)")
    points = number_type(2 * len(features.COLOURS), kind=int)  # two of each class, or nothing can be separated
    parser.add_argument("--points", type=points, default=450, metavar="N", help="images in guidance.png (default: 450)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("features"),
        metavar="FOLDER",
        help="where to write the files (default: features)",
    )
    seed = number_type(0, kind=int)
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of images, noise and t-SNE (default: 0)"
    )
    return parser
