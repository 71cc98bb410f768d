"""Where a checkpoint comes from: its own earlier checkpoints, its teacher, the data and the autoencoder behind both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raysweep.store import history
from raysweep.store.store import Store


@dataclass
class Origin:
    """One thing that a checkpoint comes from, itself first. `files` are SHA-256 by name; `passed` are the earlier
    checkpoints of the same run that it went through, by step."""

    title: str
    key: str
    step: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    passed: dict[int, str] = field(default_factory=dict)
    note: str = ""
    parents: list[tuple[str, Origin]] = field(default_factory=list)  # with what each was to it

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        facts = {name: value for name, value in vars(self).items() if name != "parents"}
        return facts | {"from": [{"as": relation, **parent.as_dict()} for relation, parent in self.parents]}


def trace(store: Store, description: dict[str, Any]) -> Origin:
    """The lineage of the checkpoint with that history, whether or not each part of it is still in the store."""
    key, step = history.key_of(description), description["step"]
    manifest = store.told(key, step)
    facts = manifest or {}
    files = {name.split("/")[-1]: file["sha256"] for name, file in facts.get("files", {}).items()}
    note = "" if store.has(key, step) else ("freed" if manifest else "not in this store")
    found = Origin(title(description), key, step, files, note=note)
    earlier = facts
    while begin := earlier.get("from_step"):
        found.passed[begin] = history.key_of(history.cut(description, begin))
        earlier = store.told(found.passed[begin], begin) or {}
    for phase in description["phases"]:
        if teacher := phase.get("teacher"):
            found.parents.append((f"taught by its {teacher['weights']} weights", trace(store, teacher["history"])))
        if encoder := phase.get("encoder"):
            found.parents.append(("aligned to it", Origin("encoder of images", encoder)))
    found.parents.append(("trained on it", _data(description, facts)))
    return found


def _data(description: dict[str, Any], facts: dict[str, Any]) -> Origin:
    known = facts.get("data", {"name": "data", "files": {}})
    return Origin(f"latents of {known['name']}: images and autoencoder", description["data"], files=known["files"])


def title(description: dict[str, Any]) -> str:
    """What a history is of, in a few words."""
    kinds = " then ".join(phase["term"]["kind"] for phase in description["phases"])
    return f"{description['backbone']}, {kinds}"
