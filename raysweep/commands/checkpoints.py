"""Which checkpoint a command line means, and which data set it belongs to: for the commands that look at one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from raysweep.commands.common import add_storage
from raysweep.errors import SweepError, UserError
from raysweep.store.store import CheckpointDamaged, CheckpointMissing, Store
from trainables import backbones, snapshot
from trainables.snapshot import Snapshot


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which checkpoint, and what a file does not say of itself."""
    add_storage(parser, "where keys are looked up")
    parser.add_argument("--source", choices=list(backbones.REFERENCES), help="whose model a file holds")
    parser.add_argument("--weights", choices=get_args(snapshot.Weights), default="ema", help="which (default: ema)")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, of a shape that has no name")
    parser.add_argument("--data", metavar="NAME", help="the data set to compare with, where it is not known")


def open_checkpoint(name: str, store: Store, options: argparse.Namespace) -> Snapshot:
    """The snapshot that `name` means: a folder, a file, or a key of `store` or how that begins.

    Raises:
        UserError: there is none, or none that can be used.
        SweepError: the store's own is damaged.
    """
    chosen: dict[str, Any] = {"weights": options.weights, "num_heads": options.heads, "device": snapshot.best_device()}
    try:
        if name and Path(name).exists():
            return snapshot.load(Path(name), source=options.source, **chosen)
        step, key = find_key(name, store)
        checkpoint = store.get(key, int(step))
        if checkpoint is None:
            raise CheckpointMissing(f"the manifest of checkpoint {key[:12]} at step {step} is damaged")
        return snapshot.load_folder(store.open(checkpoint), {"history": checkpoint.manifest.history}, **chosen)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    except (CheckpointDamaged, CheckpointMissing) as error:
        raise SweepError(str(error.args[0])) from None


def find_key(beginning: str, store: Store, also_freed: bool = False) -> tuple[str, str]:
    """The step and key of the one checkpoint whose key begins so.

    Raises:
        UserError: there is none, or there are several.
    """
    keys = {
        (step, key) for step in store.files.names("checkpoints") for key in store.files.names(f"checkpoints/{step}")
    }
    if also_freed:
        keys |= {(step, key) for step, _, key in (name[:-5].partition("-") for name in store.files.names("freed"))}
    found = sorted((step, key) for step, key in keys if key.startswith(beginning))
    if not found:
        raise UserError(
            f"no checkpoint '{beginning}': no such file or folder, "
            f"and none of the {len(keys)} keys in --storage {store.uri} begins so"
        )
    if len(found) > 1:
        some = ", ".join(f"{key[:12]} (step {step})" for step, key in found[:4])
        raise UserError(f"checkpoint '{beginning}' may be any of {len(found)}: {some}…; give more of its key")
    return found[0]
