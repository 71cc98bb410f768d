"""The append-only record of a study: proposals, probes, decisions with their reasons, ends. One JSON object a line.

It is the truth about a study. Optuna's storage, MLflow and the tables are views that can be made again from it, and a
driver that starts anew reads it to carry on.
"""

from __future__ import annotations

import json
from typing import Any

from raysweep.store import Store

Entry = dict[str, Any]


class Journal:
    """The journal of study `id` in `store`. One driver writes; a line cut off by a crash is dropped on reading."""

    def __init__(self, store: Store, study: str):
        self._fs = store.fs
        self._folder = store.path("studies", study)
        self._path = f"{self._folder}/journal.jsonl"

    def read(self) -> list[Entry]:
        """All entries, oldest first."""
        try:
            with self._fs.open_input_stream(self._path) as stream:
                lines = stream.read().split(b"\n")
        except FileNotFoundError:
            return []
        return [entry for line in lines if (entry := _parse(line)) is not None]

    def append(self, kind: str, **facts: Any) -> Entry:
        """Add one entry; it is on its way to disk when this returns."""
        entry = {"kind": kind, **facts}
        self._fs.create_dir(self._folder, recursive=True)
        with self._fs.open_append_stream(self._path) as stream:
            # A leading newline closes a line that an earlier crash may have cut off.
            stream.write(b"\n" + json.dumps(entry, allow_nan=True).encode() + b"\n")
        return entry


def _parse(line: bytes) -> Entry | None:
    try:
        entry: Entry = json.loads(line)
    except ValueError:
        return None
    return entry
