"""A study whose space has changed: finds the study that the new space may extend, and lists the differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raysweep.formats import leaves
from raysweep.space.space import PROBE_PATHS, Space
from raysweep.store.store import Store
from raysweep.study.journal import opening, studies

IRRELEVANT = {"search.trials", *(f"probe.{field}" for field in PROBE_PATHS)}
SHOWN = 60  # characters of a value in a message


def changed_from(space: Space, store: Store) -> list[str]:
    """The studies with the name and profile of `space` but another space, without those that a later study extends.
    Empty if the study of `space` itself is in the store."""
    known = {name: opening(store.files, name) for name in studies(store.files)}
    if space.id in known:
        return []
    own = (space.study, space.profile)
    same = [name for name, first in known.items() if (first["space"]["study"], first["space"]["profile"]) == own]
    extended = {earlier for first in known.values() for earlier in first.get("extends", [])}
    return [name for name in same if name not in extended]


def refuse_changed(space: Space, store: Store) -> None:
    """Refuse a space that has changed under the name of its study.

    Raises:
        UserError: the space has changed; the message lists the fields.
    """
    lines = []
    for name in changed_from(space, store):
        fields = "\n".join(f"  {line}" for line in difference(opening(store.files, name)["space"], space.resolved))
        lines.append(f"this storage has it as {name}, with a different space:\n{fields}")
    if lines:
        lines.append("--extend continues its trials in the new space; --set study=NAME starts a separate study")
        raise space.error(("study",), "\n".join(lines))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields whose change makes another study, each with its old and its new value."""
    before, after = _fields(old), _fields(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key.split(".")[0] == "launch" or key in IRRELEVANT or before.get(key) == after.get(key):
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
