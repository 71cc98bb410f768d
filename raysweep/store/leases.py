"""Leases: which driver works on what, among all drivers that share a store.

    leases/<name>.<generation>.json     an owner's claim on a piece of work, created exclusively
    owners/<owner>.json                 the owner's heartbeat: a growing number, and which process the owner is

A lease is valid while its owner's heartbeat changes. Clocks of different hosts are never compared: each other owner
measures by its own clock how long a heartbeat has not changed. A dead owner's lease is not deleted but superseded by
the next generation of the same name, so that only one of several competitors takes it over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysweep.errors import SweepError
from raysweep.store.files import Files

BEAT_S = 2.0
DEAD_S = 12.0  # an owner counts as dead when its heartbeat has not changed for this long


@dataclass(frozen=True)
class LeaseFacts:
    """What a lease is on: a study, or a task. On disk, a field that does not apply is left out.

    Attributes:
        kind: `study`, or the task's `train`, `probe` or `replay`.
        begin, end: the steps of a task.
        run: the run of a task, as JSON.
        milestones: the steps at which the runs of a study commit checkpoints. Other drivers commit there too.
    """

    kind: str = ""
    begin: int | None = None
    end: int | None = None
    run: str | None = None
    milestones: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> LeaseFacts:
        """The facts in a lease's file. Keys that another version wrote are ignored."""
        milestones = facts.get("milestones")
        return cls(
            facts.get("kind", ""),
            facts.get("begin"),
            facts.get("end"),
            facts.get("run"),
            None if milestones is None else tuple(milestones),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Lease:
    """A claim, and the process that holds it."""

    name: str
    generation: int
    owner: str
    host: str
    pid: int
    facts: LeaseFacts

    @property
    def path(self) -> str:
        """The path of its file, relative to the storage's root."""
        return _path(self.name, self.generation)

    @property
    def holder(self) -> str:
        """The owner in words."""
        return f"process {self.pid} on {self.host}"


class Leases:
    """The leases of one owner. From the first lease on, a thread writes the owner's heartbeat.

    Args:
        beat_s: seconds between two heartbeats.
        dead_s: seconds without a heartbeat after which an owner counts as dead.
    """

    def __init__(self, files: Files, beat_s: float = BEAT_S, dead_s: float = DEAD_S):
        self.owner = uuid.uuid4().hex[:12]
        self._files, self._beat_s, self._dead_s = files, beat_s, dead_s
        self._held: dict[str, Lease] = {}
        self._garbage: set[str] = set()  # paths that could not be deleted yet
        # By owner: its last heartbeat, and when it changed, in seconds of `time.monotonic`.
        self._beats: dict[str, tuple[bytes | None, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def acquire(self, name: str, facts: LeaseFacts) -> bool:
        """Take the lease of that name, unless a living owner has it. The new holder must first check whether the work
        has been done already."""
        latest = self._latest(name)
        if latest and latest.owner == self.owner:
            return True
        if latest and self._alive(latest):
            return False
        self._start_heartbeat()
        generation = latest.generation + 1 if latest else 1
        mine = Lease(name, generation, self.owner, socket.gethostname(), os.getpid(), facts)
        content = {"owner": mine.owner, "host": mine.host, "pid": mine.pid, "facts": facts.as_dict()} | _process()
        if not self._files.create(mine.path, json.dumps(content).encode()):
            return False
        # Another owner may have taken a later generation in the meantime.
        if (newer := self._latest(name)) and newer.generation > generation:
            self._files.delete(mine.path)
            return False
        with self._lock:
            self._held[name] = mine
        return True

    def release(self, name: str) -> None:
        """Give a lease back, if it is held."""
        with self._lock:
            lease = self._held.pop(name, None)
        if lease is not None:
            self._discard_all(lease)

    def generation(self, name: str) -> int:
        """The generation of a held lease: 1, or one more than that of the dead owner's lease that it superseded."""
        return self._held[name].generation

    def check(self, name: str) -> None:
        """Check that a lease is still held.

        Raises:
            SweepError: another process has taken it over, because this one's heartbeat did not change for too long.
        """
        mine, latest = self._held[name], self._latest(name)
        if latest and latest.generation > mine.generation:
            raise SweepError(
                f"{name} was taken over by {latest.holder}, because this process did not respond; this process ends"
            )

    def clear(self) -> None:
        """Delete the files of dead owners: of processes that ended on this machine, and of owners without a
        heartbeat."""
        for name in self._names():
            lease = self._latest(name)
            if lease and lease.owner != self.owner and not self._alive(lease):
                self._discard_all(lease)
        for file in self._files.names("owners"):
            try:
                ended = _has_ended(json.loads(self._files.read(f"owners/{file}") or b""))
            except (ValueError, LookupError, TypeError):
                continue
            if ended:
                self._discard(f"owners/{file}")

    def others(self) -> Iterator[Lease]:
        """The leases of other living owners."""
        for name in self._names():
            if lease := self.holder(name):
                yield lease

    def holder(self, name: str) -> Lease | None:
        """The lease of that name, if another living owner holds it."""
        lease = self._latest(name)
        return lease if lease and lease.owner != self.owner and self._alive(lease) else None

    def close(self) -> None:
        """Give all leases back and stop the heartbeat."""
        for name in list(self._held):
            self.release(name)
        self._stop.set()
        if self._heartbeat:
            self._heartbeat.join(timeout=self._dead_s)
            self._discard(f"owners/{self.owner}.json")

    # --- inside

    def _names(self) -> list[str]:
        return sorted({file.rsplit(".", 2)[0] for file in self._files.names("leases") if _is_lease(file)})

    def _discard_all(self, lease: Lease) -> None:
        """Delete a lease and the dead owners' leases that it superseded, newest generation first."""
        for generation in range(lease.generation, 0, -1):
            self._discard(_path(lease.name, generation))

    def _discard(self, path: str) -> None:
        """Delete a file. If that fails now, the heartbeat's thread deletes it later."""
        try:
            self._files.delete(path)
        except OSError:
            self._garbage.add(path)

    def _latest(self, name: str) -> Lease | None:
        files = [file for file in self._files.names("leases") if _is_lease(file) and file.rsplit(".", 2)[0] == name]
        if not files:
            return None
        generation = max(int(file.rsplit(".", 2)[1]) for file in files)
        try:
            content = json.loads(self._files.read(_path(name, generation)) or b"")
            owner = "" if _has_ended(content) else content["owner"]  # an ended process is known to be dead at once
            facts = LeaseFacts.from_dict(content["facts"])
            return Lease(name, generation, owner, content["host"], content["pid"], facts)
        except (ValueError, LookupError, TypeError):  # released just now, or damaged: no owner holds it
            return Lease(name, generation, "", "", 0, LeaseFacts())

    def _alive(self, lease: Lease) -> bool:
        if not lease.owner:
            return False
        beat, now = self._files.read(f"owners/{lease.owner}.json"), time.monotonic()
        seen = self._beats.get(lease.owner)
        if seen is None or seen[0] != beat:
            seen = self._beats[lease.owner] = (beat, now)
        return now - seen[1] < self._dead_s

    def _start_heartbeat(self) -> None:
        with self._lock:
            if self._heartbeat:
                return
            self._write_heartbeat(0)
            self._heartbeat = threading.Thread(target=self._keep_alive, daemon=True, name="raysweep-heartbeat")
            self._heartbeat.start()

    def _keep_alive(self) -> None:
        count = 0
        while not self._stop.wait(self._beat_s):
            count += 1
            # A storage that is away for a moment must not end this thread: the next heartbeat may get through.
            with contextlib.suppress(OSError, pa.ArrowException):
                self._write_heartbeat(count)
            for path in list(self._garbage):
                self._garbage.discard(path)
                self._discard(path)

    def _write_heartbeat(self, count: int) -> None:
        content = {"beat": count, "pid": os.getpid(), **_process()}
        self._files.write(f"owners/{self.owner}.json", json.dumps(content).encode())


def _path(name: str, generation: int) -> str:
    return f"leases/{name}.{generation:06d}.json"


def _is_lease(file: str) -> bool:
    parts = file.rsplit(".", 2)
    return len(parts) == 3 and parts[1].isdigit() and parts[2] == "json"


def _process() -> dict[str, Any]:
    """The scope in which this process's id is unique: the machine since its last boot, and the namespace of ids."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return {"space": f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"}
    except OSError:
        return {"space": None}


def _has_ended(process: Mapping[str, Any]) -> bool:
    """Whether the process with this `space` and `pid` ran on this machine and has ended."""
    return bool(process["space"]) and process["space"] == _process()["space"] and not _runs(process["pid"])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
