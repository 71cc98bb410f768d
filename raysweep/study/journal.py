"""The append-only record of a study: proposals, probes, decisions with reasons, ends.

    studies/<id>/journal/<number>           a batch of entries, created exclusively and never replaced
    studies/<id>/journal-copy/<number>      the same, written afterwards
    studies/<id>/journal-parts/<number>     all batches up to that number since the part before it, for quick reading

The journal is the truth about a study. Optuna's storage, MLflow and the tables are views that can be made again from
it, and a restarted driver reads it to carry on. Each batch is sealed; one that is missing, torn or altered is read from
its copy.

A driver writes batch n + 1 only if it knows batch n. So it knows all that came before, and of two drivers that want to
write the same batch, one does. A driver takes a journal over by writing an empty batch with a higher epoch. From then
on, the earlier driver finds that its next batch exists, and ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raysweep.errors import SweepError
from raysweep.retry import Notify, retry_storage
from raysweep.store.files import Files, unsealed
from raysweep.study import old_journal

Entry = dict[str, Any]
BATCHES, COPIES, PARTS = "journal", "journal-copy", "journal-parts"
PART = 256  # batches


@dataclass(frozen=True)
class Batch:
    """Entries that are written with one call.

    Attributes:
        after: the number of the batch that it follows: the last one that its writer knew.
        epoch: grows whenever another driver takes the journal over. Of two batches that follow the same one, the one
            with the higher epoch counts. There are two only where the first was damaged and has come back.
        writer: identifies the driver that wrote it.
    """

    number: int
    after: int
    epoch: int
    writer: str
    entries: Sequence[Entry]

    def spell(self) -> bytes:
        """The bytes of its file: JSON with a SHA-256."""
        content = {**vars(self), "entries": list(self.entries)}
        return json.dumps(content | {"sha256": _digest(content)}).encode()

    @classmethod
    def parse(cls, spelled: bytes | None) -> Batch | None:
        """The batch in a file; None where it is missing, torn or altered."""
        try:
            content = json.loads(spelled or b"{}")
            return cls(**content) if content.pop("sha256") == _digest(content) else None
        except (ValueError, LookupError, TypeError, AttributeError):
            return None


def studies(files: Files) -> list[str]:
    """The names of the studies in a store."""
    names = files.names("studies")
    with ThreadPoolExecutor(16) as threads:
        openings = threads.map(lambda name: opening(files, name), names)
        return [name for name, opened in zip(names, openings, strict=True) if opened]


def opening(files: Files, name: str) -> Entry:
    """The first entry of a study's journal: its `space`, and the studies that it `extends`. Empty without a journal."""
    return Journal(files, name).first()


def ignored_batches(files: Files) -> dict[str, list[int]]:
    """The numbers of the batches that are stored and do not count, by study."""
    ignored = {}
    for study in studies(files):
        journal = Journal(files, study)
        journal.read()
        if journal.ignored:
            ignored[study] = [batch.number for batch in journal.ignored]
    return ignored


class Journal:
    """The journal of a study. Anyone may read it. One driver writes it: the last one that has taken it over.

    Args:
        notify: is called with a message when writing has to wait for the storage.

    Attributes:
        ignored: the batches that were read and do not count.
    """

    def __init__(self, files: Files, study: str, notify: Notify = lambda message: None):
        self.notify = notify
        self.ignored: list[Batch] = []
        self._files, self._study, self._folder = files, study, f"studies/{study}"
        self._writer = uuid.uuid4().hex[:12]
        self._writes = False
        self._entries: list[Entry] | None = None
        self._last, self._next, self._epoch = -1, 0, 0  # the last batch that counts, the first free number, its epoch
        self._recent: dict[int, bytes] = {}  # batches by number that are in no part yet
        self._in_parts = -1  # the last number of the parts
        self._collected: list[Entry] | None = None

    def read(self) -> list[Entry]:
        """All entries, oldest first."""
        if not self._writes:
            self._load()
        assert self._entries is not None
        return list(self._entries)

    def first(self) -> Entry:
        """The first entry; empty where there is none."""
        if old_journal.present(names := self._files.names(self._folder)) or BATCHES not in names:
            return next(iter(self.read()), {})
        begin = [Batch.parse(content) for content in self._files.read_many(self._path(BATCHES, n) for n in (0, 1))]
        if all(begin) and begin[1] and begin[1].after == 0 and begin[1].entries:
            return begin[1].entries[0]
        return next(iter(self.read()), {})

    def take_over(self) -> None:
        """Become the one driver that writes this journal. An earlier driver cannot write any more.

        Raises:
            SweepError: the storage stayed unusable, or entries have come since the journal was read.
        """
        known = None if self._entries is None else len(self._entries)
        retry_storage(self._take_over, self.notify)
        assert self._entries is not None
        if known not in (None, len(self._entries)):
            raise SweepError(f"{self._study}: another process has written its journal; run the same command again")
        self._writes = True

    def append(self, kind: str, **facts: Any) -> Entry:
        """Add one entry. When this returns, it is stored. Waits for a storage that is full or away.

        Raises:
            SweepError: another driver now writes this journal, or the storage stayed unusable.
        """
        entry = {"kind": kind, **facts}
        if self._collected is None:
            self._write([entry])
        else:
            self._collected.append(entry)
        return entry

    @property
    def collects(self) -> bool:
        """Whether what is appended now is written later, at the end of a block `together`."""
        return self._collected is not None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write the entries that are appended inside as one batch, at the end of the outermost block."""
        if self._collected is not None:
            yield
            return
        self._collected = []
        try:
            yield
        finally:
            entries, self._collected = self._collected, None
            if entries:
                self._write(entries)

    # --- writing

    def _write(self, entries: Sequence[Entry]) -> None:
        if not self._writes:
            self.take_over()
        assert self._entries is not None
        batch = Batch(self._next, self._last, self._epoch, self._writer, entries)
        retry_storage(lambda: self._store(batch), self.notify)
        self._entries.extend(entries)
        with contextlib.suppress(OSError):  # parts only save time
            self._write_parts()

    def _store(self, batch: Batch) -> None:
        spelled = batch.spell()
        if not self._files.create(self._path(BATCHES, batch.number), spelled):
            raise SweepError(f"{self._study} was taken over by another driver; this process ends")
        self._files.write(self._path(COPIES, batch.number), spelled)
        self._recent[batch.number] = spelled
        self._last, self._next, self._epoch = batch.number, batch.number + 1, batch.epoch

    def _take_over(self) -> None:
        while True:
            self._load(mend=True)
            with contextlib.suppress(SweepError):  # the earlier driver has just written; read that too
                self._store(Batch(self._next, self._last, self._epoch + 1, self._writer, []))
                return

    def _write_parts(self) -> None:
        while self._next > (end := self._in_parts + PART):
            numbers = [number for number in sorted(self._recent) if number <= end]
            batches = [self._recent[number].decode() for number in numbers]
            self._files.write_sealed(self._path(PARTS, end), {"first": self._in_parts + 1, "batches": batches})
            for number in numbers:
                del self._recent[number]
            self._in_parts = end

    # --- reading

    def _load(self, mend: bool = False) -> None:
        """Read all batches and put them in order.

        Args:
            mend: also read all copies, and replace what is missing or damaged. Only a driver that takes over does: a
                reader may come between a batch and its copy.
        """
        names = self._files.names(self._folder)
        self._entries = old_journal.read(self._files, self._folder, names)
        self._in_parts, batches = self._load_parts() if PARTS in names else (-1, [])
        numbers = {place: self._numbers(place) for place in (BATCHES, COPIES)}
        tail = sorted(set().union(*numbers.values()))
        stored = self._read_all(BATCHES, tail)
        lacking = tail if mend else [number for number in tail if number not in stored]
        copies = self._read_all(COPIES, lacking)
        self._recent = copies | stored
        if mend:
            for place, there in ((BATCHES, stored), (COPIES, copies)):
                for number in self._recent.keys() - there.keys():
                    self._files.write(self._path(place, number), self._recent[number])
        parsed = (Batch.parse(spelled) for spelled in self._recent.values())
        self._order([*batches, *(batch for batch in parsed if batch)])
        self._next = max([self._last, self._in_parts, *tail]) + 1

    def _load_parts(self) -> tuple[int, list[Batch]]:
        """The number of the last part, and the batches in all parts. An altered part and those after it are left out:
        their batches are read singly."""
        end, batches = -1, []
        names = sorted(self._files.names(f"{self._folder}/{PARTS}"))
        contents = self._files.read_many(f"{self._folder}/{PARTS}/{name}" for name in names)
        for name, content in zip(names, contents, strict=True):
            part = unsealed(content)
            if part is None or part["first"] != end + 1:
                break
            batches += [batch for spelled in part["batches"] if (batch := Batch.parse(spelled.encode()))]
            end = int(name)
        return end, batches

    def _numbers(self, place: str) -> list[int]:
        """The numbers of the files in a place that no part contains."""
        after = self._path(place, self._in_parts) if self._in_parts >= 0 else ""
        names = (entry.path.rpartition("/")[2] for entry in self._files.walk(f"{self._folder}/{place}", after))
        return [int(name) for name in names if name.isdigit()]

    def _read_all(self, place: str, numbers: Sequence[int]) -> dict[int, bytes]:
        """The undamaged files of a place, by number."""
        contents = self._files.read_many(self._path(place, number) for number in numbers)
        pairs = zip(numbers, contents, strict=True)
        return {number: content for number, content in pairs if content is not None and Batch.parse(content)}

    def _order(self, batches: Sequence[Batch]) -> None:
        """Follow the batches from the first to the last, and note their entries."""
        assert self._entries is not None
        followers: dict[int, list[Batch]] = {}
        for batch in batches:
            followers.setdefault(batch.after, []).append(batch)
        self._last, self._epoch, counted = -1, 0, set()
        while later := [batch for batch in followers.get(self._last, []) if batch.epoch >= self._epoch]:
            batch = max(later, key=lambda batch: batch.epoch)
            self._entries.extend(batch.entries)
            self._last, self._epoch = batch.number, batch.epoch
            counted.add(batch.number)
        self.ignored = [batch for batch in batches if batch.number not in counted]

    def _path(self, place: str, number: int) -> str:
        return f"{self._folder}/{place}/{number:08d}"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
