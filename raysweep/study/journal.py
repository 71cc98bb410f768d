"""The append-only record of a study: proposals, probes, decisions with their reasons, ends. One JSON object a line.

It is the truth about a study. Optuna's storage, MLflow and the tables are views that can be made again from it, and a
driver that starts anew reads it to carry on. So there are two copies, each line numbered and sealed: what is torn or
altered in one is read from the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysweep.retry import Notify, retry_storage
from raysweep.store.store import Store

Entry = dict[str, Any]
COPIES = ("journal", "journal-copy")
TORN = -1
PART_LINES = 256  # on an object store, which cannot append: a full part is never written again


@dataclass(frozen=True)
class JournalWriter:
    """The right to write a study's journal.

    Args:
        epoch: grows whenever the right goes to another driver; of two lines of one number, the later epoch's counts.
        check: raises once the right has gone.
        tell: is told when writing has to wait for the storage.
    """

    epoch: int = 0
    check: Callable[[], None] = lambda: None
    tell: Notify = lambda message: None


def studies(store: Store) -> list[str]:
    """The names of the studies in a store."""
    return sorted(name for name in store.names("studies") if opening(store, name))


def opening(store: Store, name: str) -> Entry:
    """What a study's journal begins with: its `space`, and the studies that it `extends`; empty where it has none."""
    return Journal(store, name).first()


class Journal:
    """The journal of study `id` in `store`. One driver writes; what a crash cut off is dropped on reading."""

    def __init__(self, store: Store, study: str, writer: JournalWriter | None = None):
        self._store, self._pen = store, writer or JournalWriter()
        self._folder = f"studies/{study}"
        self._lines: list[bytes] | None = None
        self._to_mend: list[str] = []

    def read(self) -> list[Entry]:
        """All entries, oldest first."""
        contents = [self._contents(name) for name in COPIES]
        copies = [_lines(content) for content in contents[: 1 if contents[0] == contents[1] else 2]]
        copies = [copies[0], copies[-1]]  # the same, mostly: read once
        merged: dict[int, bytes] = {}
        for number, line in (each for copy in copies for each in copy.items()):
            if number not in merged or _place(line)[1] > _place(merged[number])[1]:
                merged[number] = line
        self._lines = []
        for number in range(len(merged)):
            if number not in merged:
                break  # both copies lack an entry: what follows it cannot be read as it was meant
            self._lines.append(merged[number])
        self._to_mend = [
            name for name, copy in zip(COPIES, copies, strict=True) if copy != dict(enumerate(self._lines))
        ]
        return [json.loads(line)["entry"] for line in self._lines]

    def append(self, kind: str, **facts: Any) -> Entry:
        """Add one entry; it is on disk, twice, when this returns. Waits for a storage that is full or away.

        Raises:
            SweepError: another driver writes this journal now, or the storage stayed away.
        """
        if self._lines is None:
            self.read()
        assert self._lines is not None
        entry = {"kind": kind, **facts}
        self._lines.append(_seal(len(self._lines), entry, self._pen.epoch))
        retry_storage(self._write_last, self._pen.tell)
        return entry

    def _write_last(self) -> None:
        assert self._lines is not None
        self._pen.check()
        self._store.check_there()
        while self._to_mend:  # left to whoever writes: a reader may meet a line that is half there
            self._rewrite(self._to_mend[-1])
            self._to_mend.pop()
        for name in COPIES:
            if path := self._store.local(self._folder, f"{name}.jsonl"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as stream:
                    # A leading newline closes a line that an earlier crash may have cut off.
                    stream.write(b"\n" + self._lines[-1] + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            else:
                self._write_part(name, (len(self._lines) - 1) // PART_LINES)

    def first(self) -> Entry:
        """The first entry, or an empty one."""
        lines = [line for name in COPIES for content in self._contents(name) for line in content.split(b"\n")]
        found = _lines([b"\n".join(line for line in lines if line.startswith(b'{"n": 0,'))])
        return json.loads(found[0])["entry"] if found else {}

    def _contents(self, name: str) -> list[bytes]:
        if self._store.local():
            files = [f"{name}.jsonl"]
        else:
            files = sorted(file for file in self._store.names(self._folder) if file.startswith(f"{name}."))
        return [self._store.read(f"{self._folder}/{file}") or b"" for file in files]

    def _rewrite(self, name: str) -> None:
        assert self._lines is not None
        if self._store.local():
            self._store.write(f"{self._folder}/{name}.jsonl", b"\n".join(self._lines) + b"\n")
        else:
            for part in range(-(-len(self._lines) // PART_LINES)):
                self._write_part(name, part)

    def _write_part(self, name: str, part: int) -> None:
        assert self._lines is not None
        lines = self._lines[part * PART_LINES : (part + 1) * PART_LINES]
        self._store.write(f"{self._folder}/{name}.{part:06d}.jsonl", b"\n".join(lines) + b"\n")


def _lines(contents: list[bytes]) -> dict[int, bytes]:
    """The lines of a copy that are as they were written, by number."""
    found: dict[int, bytes] = {}
    epochs: dict[int, int] = {}
    for line in (line for content in contents for line in content.split(b"\n")):
        number, epoch = _place(line)
        if epoch >= epochs.get(number, 0):  # a driver that was outbid may have written one line too many
            found[number], epochs[number] = line, epoch
    found.pop(TORN, None)
    return found


def _seal(number: int, entry: Entry, epoch: int) -> bytes:
    text = json.dumps(entry, allow_nan=True)
    digest = hashlib.sha256(f"{number} {epoch} {text}".encode()).hexdigest()
    return json.dumps({"n": number, "epoch": epoch, "entry": entry, "sha256": digest[:16]}, allow_nan=True).encode()


def _place(line: bytes) -> tuple[int, int]:
    """The number of a line in the journal and its epoch; `TORN` where it is not as it was written."""
    try:
        sealed = json.loads(line)
        number, epoch = sealed["n"], sealed["epoch"]
        whole = isinstance(number, int) and isinstance(epoch, int) and line == _seal(number, sealed["entry"], epoch)
        return (number, epoch) if whole else (TORN, 0)
    except (ValueError, LookupError, TypeError):
        return TORN, 0
