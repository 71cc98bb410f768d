"""Reads the journal of a study as versions before the numbered batches wrote it: two copies, one entry per line.

Each line is numbered and sealed, so a line that is torn or altered in one copy is read from the other. On an object
store, a copy lies in parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from raysweep.store.files import Files

COPIES = ("journal.", "journal-copy.")
TORN = -1


def present(names: Iterable[str]) -> bool:
    """Whether such a journal is among the files of a study's folder."""
    return any(name.startswith(COPIES) and name.endswith(".jsonl") for name in names)


def read(files: Files, folder: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """All entries, oldest first.

    Args:
        names: the names of the files in the study's folder.
    """
    merged: dict[int, tuple[int, bytes]] = {}  # number -> epoch and line
    for copy in COPIES:
        parts = sorted(name for name in names if name.startswith(copy) and name.endswith(".jsonl"))
        for content in files.read_many(f"{folder}/{name}" for name in parts):
            for line in (content or b"").split(b"\n"):
                number, epoch = _position(line)
                # A driver that had lost the right to write may have written one line too many.
                if number != TORN and epoch >= merged.get(number, (0, b""))[0]:
                    merged[number] = epoch, line
    entries = []
    for number in range(len(merged)):
        if number not in merged:
            break  # both copies lack an entry, so the entries after it cannot be interpreted
        entries.append(json.loads(merged[number][1])["entry"])
    return entries


def _position(line: bytes) -> tuple[int, int]:
    """The number of a line and its epoch; `(TORN, 0)` if the line is torn or altered."""
    try:
        sealed = json.loads(line)
        number, epoch = sealed["n"], sealed["epoch"]
        intact = isinstance(number, int) and isinstance(epoch, int) and line == _seal(number, sealed["entry"], epoch)
        return (number, epoch) if intact else (TORN, 0)
    except (ValueError, LookupError, TypeError):
        return TORN, 0


def _seal(number: int, entry: dict[str, Any], epoch: int) -> bytes:
    text = json.dumps(entry, allow_nan=True)
    digest = hashlib.sha256(f"{number} {epoch} {text}".encode()).hexdigest()
    return json.dumps({"n": number, "epoch": epoch, "entry": entry, "sha256": digest[:16]}, allow_nan=True).encode()
