"""A study whose space has changed: what differs, and how `--extend` goes on with its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raysweep.formats import leaves
from raysweep.space.space import PROBE_PATHS, Space
from raysweep.store.store import Store
from raysweep.study.journal import opening, studies

NO_MATTER = {"search.trials", *(f"probe.{field}" for field in PROBE_PATHS)}
SHOWN = 60  # characters of a value


def changed_from(space: Space, store: Store) -> list[str]:
    """The studies of that name and profile that hold another space than `space`, which is not in the store yet; without
    those that others have extended."""
    known = {name: opening(store.files, name) for name in studies(store.files)}
    if space.id in known:
        return []
    wanted = (space.study, space.profile)
    same = [name for name, facts in known.items() if (facts["space"]["study"], facts["space"]["profile"]) == wanted]
    extended = {before for facts in known.values() for before in facts.get("extends", [])}
    return [name for name in same if name not in extended]


def refuse_changed(space: Space, store: Store) -> None:
    """Refuse a space that has changed under the name of its study.

    Raises:
        UserError: field by field, what has changed.
    """
    told = []
    for name in changed_from(space, store):
        fields = "\n".join(f"  {line}" for line in difference(opening(store.files, name)["space"], space.resolved))
        told.append(f"it is in this storage as {name}, with another space:\n{fields}")
    if told:
        told.append("--extend goes on with its trials in the new space; --set study=NAME starts another beside it")
        raise space.error(("study",), "\n".join(told))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields that make another study of it, each with its old and its new value."""
    before, after = _fields(old), _fields(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key.split(".")[0] == "launch" or key in NO_MATTER or before.get(key) == after.get(key):
            continue
        lines.append(f"{key}: {_shown(before, key)} -> {_shown(after, key)}")
    return lines


def _fields(space: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a resolved space by dotted key, each enqueued row under its position."""
    rows = dict(enumerate(space.get("enqueue", [])))
    tree = {key: value for key, value in space.items() if key != "enqueue"} | ({"enqueue": rows} if rows else {})
    return {".".join(path): value for path, value in leaves(tree)}


def _shown(fields: Mapping[str, Any], key: str) -> str:
    if key not in fields:
        return "(not there)"
    text = json.dumps(fields[key])
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
