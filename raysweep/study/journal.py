"""The append-only record of a study: proposals, probes, decisions with reasons, ends. One JSON object per line.

The journal is the truth about a study. Optuna's storage, MLflow and the tables are views that can be made again from
it, and a restarted driver reads it to carry on. It therefore exists in two copies, each line numbered and sealed: a
line that is torn or altered in one copy is read from the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysweep.retry import Notify, retry_storage
from raysweep.store.files import Files

Entry = dict[str, Any]
COPIES = ("journal", "journal-copy")
TORN = -1
PART_LINES = 256  # lines of a part on an object store, which cannot append; a full part is not rewritten


@dataclass(frozen=True)
class JournalWriter:
    """The right to write a study's journal.

    Args:
        epoch: the fencing token. It grows whenever the right passes to another driver. Of two lines with the same
            number, the one with the higher epoch counts.
        check: raises an exception once the right is lost.
        notify: is called with a message when writing has to wait for the storage.
    """

    epoch: int = 0
    check: Callable[[], None] = lambda: None
    notify: Notify = lambda message: None


def studies(files: Files) -> list[str]:
    """The names of the studies in a store."""
    return sorted(name for name in files.names("studies") if opening(files, name))


def opening(files: Files, name: str) -> Entry:
    """The first entry of a study's journal: its `space`, and the studies that it `extends`. Empty without a journal."""
    return Journal(files, name).first()


class Journal:
    """The journal of a study. One driver writes it; a line that a crash cut off is dropped on reading."""

    def __init__(self, files: Files, study: str, writer: JournalWriter | None = None):
        self._files, self._writer = files, writer or JournalWriter()
        self._folder = f"studies/{study}"
        self._lines: list[bytes] | None = None
        self._to_mend: list[str] = []  # copies that differ from `_lines`

    def read(self) -> list[Entry]:
        """All entries, oldest first."""
        contents = [self._contents(copy) for copy in COPIES]
        copies = [_whole_lines(content) for content in contents[: 1 if contents[0] == contents[1] else 2]]
        copies = [copies[0], copies[-1]]  # equal copies are parsed only once
        merged: dict[int, bytes] = {}
        for copy in copies:
            for number, line in copy.items():
                if number not in merged or _position(line)[1] > _position(merged[number])[1]:
                    merged[number] = line
        self._lines = []
        for number in range(len(merged)):
            if number not in merged:
                break  # both copies lack an entry, so the entries after it cannot be interpreted
            self._lines.append(merged[number])
        self._to_mend = [
            name for name, copy in zip(COPIES, copies, strict=True) if copy != dict(enumerate(self._lines))
        ]
        return [json.loads(line)["entry"] for line in self._lines]

    def append(self, kind: str, **facts: Any) -> Entry:
        """Add one entry. When this returns, both copies are on disk. Waits for a storage that is full or away.

        Raises:
            SweepError: another driver now writes this journal, or the storage stayed unusable.
        """
        if self._lines is None:
            self.read()
        assert self._lines is not None
        entry = {"kind": kind, **facts}
        self._lines.append(_seal(len(self._lines), entry, self._writer.epoch))
        retry_storage(self._write_last, self._writer.notify)
        return entry

    def _write_last(self) -> None:
        assert self._lines is not None
        self._writer.check()
        self._files.check_available()
        while self._to_mend:  # not in `read`: a reader may see a line that another driver is still writing
            self._rewrite(self._to_mend[-1])
            self._to_mend.pop()
        for copy in COPIES:
            if path := self._files.local(self._folder, f"{copy}.jsonl"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as stream:
                    # The leading newline closes a line that an earlier crash may have cut off.
                    stream.write(b"\n" + self._lines[-1] + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            else:
                self._write_part(copy, (len(self._lines) - 1) // PART_LINES)

    def first(self) -> Entry:
        """The first entry; empty where there is none."""
        lines = [line for copy in COPIES for content in self._contents(copy) for line in content.split(b"\n")]
        first = _whole_lines([b"\n".join(line for line in lines if line.startswith(b'{"n": 0,'))])
        return json.loads(first[0])["entry"] if first else {}

    def _contents(self, copy: str) -> list[bytes]:
        if self._files.local():
            names = [f"{copy}.jsonl"]
        else:
            names = sorted(name for name in self._files.names(self._folder) if name.startswith(f"{copy}."))
        return [self._files.read(f"{self._folder}/{name}") or b"" for name in names]

    def _rewrite(self, copy: str) -> None:
        assert self._lines is not None
        if self._files.local():
            self._files.write(f"{self._folder}/{copy}.jsonl", b"\n".join(self._lines) + b"\n")
        else:
            for part in range(-(-len(self._lines) // PART_LINES)):
                self._write_part(copy, part)

    def _write_part(self, copy: str, part: int) -> None:
        assert self._lines is not None
        lines = self._lines[part * PART_LINES : (part + 1) * PART_LINES]
        self._files.write(f"{self._folder}/{copy}.{part:06d}.jsonl", b"\n".join(lines) + b"\n")


def _whole_lines(contents: list[bytes]) -> dict[int, bytes]:
    """The undamaged lines of a copy, by number."""
    lines: dict[int, bytes] = {}
    epochs: dict[int, int] = {}
    for line in (line for content in contents for line in content.split(b"\n")):
        number, epoch = _position(line)
        if epoch >= epochs.get(number, 0):  # a driver that lost the right to write may have written one line too many
            lines[number], epochs[number] = line, epoch
    lines.pop(TORN, None)
    return lines


def _seal(number: int, entry: Entry, epoch: int) -> bytes:
    text = json.dumps(entry, allow_nan=True)
    digest = hashlib.sha256(f"{number} {epoch} {text}".encode()).hexdigest()
    return json.dumps({"n": number, "epoch": epoch, "entry": entry, "sha256": digest[:16]}, allow_nan=True).encode()


def _position(line: bytes) -> tuple[int, int]:
    """The number of a line and its epoch; `(TORN, 0)` if the line is torn or altered."""
    try:
        sealed = json.loads(line)
        number, epoch = sealed["n"], sealed["epoch"]
        intact = isinstance(number, int) and isinstance(epoch, int) and line == _seal(number, sealed["entry"], epoch)
        return (number, epoch) if intact else (TORN, 0)
    except (ValueError, LookupError, TypeError):
        return TORN, 0
