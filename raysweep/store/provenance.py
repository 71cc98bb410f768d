"""The provenance of a checkpoint: the earlier checkpoints of its run, its teacher, its data, and its image encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raysweep.store import history
from raysweep.store.manifest import DataFiles, Manifest
from raysweep.store.store import Store
from trainables.redaction import public


@dataclass
class Origin:
    """A checkpoint, a data set or an encoder, with the origins that it comes from itself.

    Attributes:
        key: the checkpoint's, or the identity of the data or the encoder.
        files: SHA-256 (hex) by name.
        passed: keys of the earlier checkpoints of the same run, by step.
        note: says that the checkpoint is missing or deleted; empty if it is in the store.
        parents: the origins that this one comes from, each with its relation to this one.
    """

    title: str
    key: str
    step: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    passed: dict[int, str] = field(default_factory=dict)
    note: str = ""
    parents: list[tuple[str, Origin]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        facts = {name: value for name, value in vars(self).items() if name != "parents"}
        return facts | {"from": [{"as": relation, **parent.as_dict()} for relation, parent in self.parents]}


def trace(store: Store, description: dict[str, Any]) -> Origin:
    """The provenance of the checkpoint with that history, whether or not each part of it is still in the store."""
    key, step = history.key_of(description), description["step"]
    manifest = store.manifest(key, step)
    note = "" if store.get(key, step) else ("freed" if manifest else "not in this store")
    origin = Origin(title(description), key, step, manifest.checksums if manifest else {}, note=note)
    segment = manifest
    while segment and (begin := segment.training.from_step):
        origin.passed[begin] = history.key_of(history.cut(description, begin))
        segment = store.manifest(origin.passed[begin], begin)
    for phase in description["phases"]:
        if teacher := phase.get("teacher"):
            origin.parents.append((f"taught by its {teacher['weights']} weights", trace(store, teacher["history"])))
        if encoder := phase.get("encoder"):
            origin.parents.append(("aligned to it", Origin("encoder of images", encoder)))
    origin.parents.append(("trained on it", _data(description, manifest)))
    return origin


def _data(description: dict[str, Any], manifest: Manifest | None) -> Origin:
    data = (manifest and manifest.training.data) or DataFiles("data", {})
    title = f"latents of {public(data.name)}: images and autoencoder"
    return Origin(title, description["data"], files=dict(data.files))


def title(description: dict[str, Any]) -> str:
    """A history in a few words: the backbone, and the methods of its phases."""
    kinds = " then ".join(phase["term"]["kind"] for phase in description["phases"])
    return f"{description['backbone']}, {kinds}"
