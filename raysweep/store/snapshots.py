"""Opens a snapshot by its key, folder or file, describes it, and chooses the data set to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysweep.errors import SweepError, UserError
from raysweep.store.lookup import find_key
from raysweep.store.store import CheckpointDamaged, CheckpointMissing, Store
from trainables import snapshot as snapshots
from trainables.datasets import catalog
from trainables.datasets.catalog import DataSet
from trainables.redaction import public
from trainables.snapshot import Snapshot, Weights


def open_snapshot(name: str, store: Store, *, weights: Weights, source: str | None, heads: int | None) -> Snapshot:
    """The snapshot that `name` names: a folder, a file, or the beginning of a key in `store`.

    Args:
        source: the repository that wrote a file; None: detected from the names of its tensors.
        heads: attention heads, needed if no named backbone has the snapshot's shape.

    Raises:
        UserError: there is none, or it cannot be used.
        SweepError: the checkpoint in the store is damaged.
    """
    options: dict[str, Any] = {"weights": weights, "num_heads": heads, "device": snapshots.best_device()}
    try:
        if name and Path(name).exists():
            return snapshots.load(Path(name), source=source, **options)
        step, key = find_key(name, store)
        checkpoint = store.get(key, step)
        if checkpoint is None:
            raise CheckpointMissing(f"the manifest of checkpoint {key[:12]} at step {step} is damaged")
        return snapshots.load_folder(store.open(checkpoint), {"history": checkpoint.manifest.history}, **options)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    except (CheckpointDamaged, CheckpointMissing) as error:
        raise SweepError(str(error.args[0])) from None


def choose_data(snapshots: Sequence[Snapshot], name: str | None) -> DataSet:
    """The data set to compare snapshots with: `name`, else that of their history, else the only one that fits their
    shape.

    Raises:
        UserError: there is none, there are several, it has another shape, or it is not on this machine.
    """
    data, *others = [_choose(snapshot, name) for snapshot in snapshots]
    if any(other != data for other in others):
        raise UserError("the checkpoints belong to different data sets; give checkpoints of one")
    return data


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """What is known of a snapshot, as plain data."""
    return {
        "backbone": snapshot.name,
        "source": snapshot.source,
        "weights": snapshot.weights,
        "step": snapshot.step,
        "parameters": snapshot.parameters,
        "latent_shape": list(snapshot.latent_shape),
        "num_classes": snapshot.num_classes,
        "data": snapshot.data and public(snapshot.data),
    }


def _choose(snapshot: Snapshot, name: str | None) -> DataSet:
    shape = _shape(snapshot)
    fitting = [known for known in catalog.known() if _fits(catalog.find(known), snapshot)]
    names = [chosen for chosen in (name, snapshot.data) if chosen][:1] or fitting
    if len(names) != 1:
        which = f"several data sets have ({', '.join(names)})" if names else "no known data set has"
        raise UserError(f"the checkpoint has {shape}, which {which}; name one by --data: {', '.join(catalog.known())}")
    try:
        catalog.identity(names[0])
    except LookupError as error:
        raise UserError(f"--data {names[0]}: {error.args[0]}") from None
    data = catalog.find(names[0])
    if not _fits(data, snapshot):
        fits = ", ".join(fitting) or "none"
        raise UserError(
            f"--data {data.name}: has {_shape(data)}, but the checkpoint has {shape}; data sets that fit: {fits}"
        )
    return data


def _fits(data: DataSet, snapshot: Snapshot) -> bool:
    return (data.latent_shape, data.num_classes) == (snapshot.latent_shape, snapshot.num_classes)


def _shape(of: DataSet | Snapshot) -> str:
    return f"{of.num_classes} classes of latents {'x'.join(map(str, of.latent_shape))}"
