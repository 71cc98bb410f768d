"""The options that name a checkpoint, for the commands that open one."""

from __future__ import annotations

import argparse
from typing import get_args

from raysweep.commands.common import add_storage, number_type
from raysweep.store.snapshots import open_snapshot
from raysweep.store.store import Store
from trainables import backbones, snapshot
from trainables.snapshot import Snapshot


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a checkpoint is, and those for facts that its file may lack."""
    add_storage(parser, "the store in which keys are looked up")
    parser.add_argument(
        "--source", choices=list(backbones.REFERENCES), help="the repository that wrote a file (default: detected)"
    )
    parser.add_argument(
        "--weights", choices=get_args(snapshot.Weights), default="ema", help="which weights (default: ema)"
    )
    heads = number_type(1, kind=int)
    parser.add_argument(
        "--heads",
        type=heads,
        metavar="N",
        help="attention heads, needed if no named backbone has the checkpoint's shape",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="the data set to compare with (default: the one that the checkpoint names or fits)",
    )


def open_checkpoint(name: str, store: Store, options: argparse.Namespace) -> Snapshot:
    """Open the checkpoint that a command line names, as `open_snapshot` does."""
    return open_snapshot(name, store, weights=options.weights, source=options.source, heads=options.heads)
