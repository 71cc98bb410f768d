"""The append-only record of a study: proposals, probes, decisions with their reasons, ends. One JSON object a line.

It is the truth about a study. Optuna's storage, MLflow and the tables are views that can be made again from it, and a
driver that starts anew reads it to carry on. So there are two copies, each line numbered and sealed: what is torn or
altered in one is read from the other.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from raysweep.store import Store

Entry = dict[str, Any]
COPIES = ("journal", "journal-copy")
PART_LINES = 256  # on an object store, which cannot append: a full part is never written again


class Journal:
    """The journal of study `id` in `store`. One driver writes; what a crash cut off is dropped on reading."""

    def __init__(self, store: Store, study: str):
        self._store = store
        self._folder = f"studies/{study}"
        self._lines: list[bytes] | None = None
        self._to_mend: list[str] = []

    def read(self) -> list[Entry]:
        """All entries, oldest first."""
        copies = [self._read_copy(name) for name in COPIES]
        merged = {number: line for copy in reversed(copies) for number, line in copy.items()}
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
        """Add one entry; it is on its way to disk, twice, when this returns."""
        if self._lines is None:
            self.read()
        assert self._lines is not None
        while self._to_mend:  # left to whoever writes: a reader may meet a line that is half there
            self._rewrite(self._to_mend.pop())
        entry = {"kind": kind, **facts}
        self._lines.append(_seal(len(self._lines), entry))
        for name in COPIES:
            if path := self._store.local(self._folder, f"{name}.jsonl"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as stream:
                    # A leading newline closes a line that an earlier crash may have cut off.
                    stream.write(b"\n" + self._lines[-1] + b"\n")
            else:
                self._write_part(name, (len(self._lines) - 1) // PART_LINES)
        return entry

    def _read_copy(self, name: str) -> dict[int, bytes]:
        if self._store.local():
            files = [f"{name}.jsonl"]
        else:
            files = sorted(file for file in self._store.names(self._folder) if file.startswith(f"{name}."))
        found: dict[int, bytes] = {}
        for file in files:
            for line in (self._store.read(f"{self._folder}/{file}") or b"").split(b"\n"):
                number = _number(line)
                if number is not None:
                    found[number] = line
        return found

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


def _seal(number: int, entry: Entry) -> bytes:
    text = json.dumps(entry, allow_nan=True)
    digest = hashlib.sha256(f"{number} {text}".encode()).hexdigest()
    return json.dumps({"n": number, "entry": entry, "sha256": digest[:16]}, allow_nan=True).encode()


def _number(line: bytes) -> int | None:
    """The place of a line in the journal, or None where it is not as it was written."""
    try:
        sealed = json.loads(line)
        number, entry = sealed["n"], sealed["entry"]
        return number if isinstance(number, int) and line == _seal(number, entry) else None
    except (ValueError, LookupError, TypeError):
        return None
