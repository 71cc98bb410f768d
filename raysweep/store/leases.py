"""Who is at work on what, among all drivers that share a store.

    leases/<name>.<generation>.json     an owner's claim on a piece of work, created exclusively
    owners/<owner>.json                 the owner's heartbeat: a number that grows; and which process it is

A lease counts while its owner's heartbeat moves. Nobody compares clocks: each watcher times for itself how long a
heartbeat has stood still. A dead owner's lease is not deleted but outbid, with the next generation, so that of several
who want to take it over one does.
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
from raysweep.store.store import Store

BEAT_S = 2.0
DEAD_S = 12.0  # a heartbeat that has stood still for so long is a dead owner's


@dataclass(frozen=True)
class Lease:
    """A claim: by whom, and what was said about it."""

    name: str
    generation: int
    owner: str
    host: str
    pid: int
    facts: dict[str, Any]

    @property
    def place(self) -> str:
        return _place(self.name, self.generation)

    @property
    def holder(self) -> str:
        """The owner, for people."""
        return f"process {self.pid} on {self.host}"


class Leases:
    """One owner's leases in a store, kept alive by a thread while any is held."""

    def __init__(self, store: Store, beat_s: float = BEAT_S, dead_s: float = DEAD_S):
        self.owner = uuid.uuid4().hex[:12]
        self._store, self._beat_s, self._dead_s = store, beat_s, dead_s
        self._held: dict[str, Lease] = {}
        self._garbage: set[str] = set()  # files that could not be deleted yet
        self._beats: dict[str, tuple[bytes | None, float]] = {}  # another owner's heartbeat, and since when it is so
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire(self, name: str, facts: Mapping[str, Any]) -> bool:
        """Take the lease of that name, unless somebody alive has it. Whoever gets it looks first whether the work is
        not done already."""
        latest = self._latest(name)
        if latest and latest.owner == self.owner:
            return True
        if latest and self._alive(latest):
            return False
        self._beat()
        generation = latest.generation + 1 if latest else 1
        mine = Lease(name, generation, self.owner, socket.gethostname(), os.getpid(), dict(facts))
        content = {key: value for key, value in vars(mine).items() if key not in ("name", "generation")} | _process()
        if not self._store.create(mine.place, json.dumps(content).encode()):
            return False
        if (after := self._latest(name)) and after.generation > generation:  # somebody had seen a later one
            self._store.delete(mine.place)
            return False
        with self._lock:
            self._held[name] = mine
        return True

    def release(self, name: str) -> None:
        """Give a lease back; nothing happens where it is not held."""
        with self._lock:
            lease = self._held.pop(name, None)
        if lease is None:
            return
        for generation in range(lease.generation, 0, -1):  # and the dead ones that it outbid
            self._discard(_place(name, generation))

    def generation(self, name: str) -> int:
        """Which lease of that name is held: the first, or one that outbid dead owners'."""
        return self._held[name].generation

    def check(self, name: str) -> None:
        """Nothing, while the lease of that name is held.

        Raises:
            SweepError: somebody has taken it over, since this process had not been heard of for too long.
        """
        mine, latest = self._held[name], self._latest(name)
        if latest and latest.generation > mine.generation:
            raise SweepError(f"{name} was taken over by {latest.holder}, as this process had stood still; it ends here")

    def clear(self) -> None:
        """Delete what owners that are known to be dead have left: on this machine, or watched for long enough."""
        for name in self._names():
            lease = self._latest(name)
            if lease and lease.owner != self.owner and not self._alive(lease):
                for generation in range(lease.generation, 0, -1):
                    self._discard(_place(name, generation))
        for file in self._store.names("owners"):
            try:
                said = json.loads(self._store.read(f"owners/{file}") or b"")
                gone = _is_gone(said)
            except (ValueError, LookupError, TypeError):
                continue
            if gone:
                self._discard(f"owners/{file}")

    def others(self) -> Iterator[Lease]:
        """The leases that others hold and that count."""
        for name in self._names():
            lease = self._latest(name)
            if lease and lease.owner != self.owner and self._alive(lease):
                yield lease

    def holder(self, name: str) -> Lease | None:
        """Who else holds the lease of that name, if somebody alive does."""
        lease = self._latest(name)
        return lease if lease and lease.owner != self.owner and self._alive(lease) else None

    def close(self) -> None:
        """Give everything back."""
        for name in list(self._held):
            self.release(name)
        self._stop.set()
        if self._heart:
            self._heart.join(timeout=self._dead_s)
            self._discard(f"owners/{self.owner}.json")

    # --- inside

    def _names(self) -> list[str]:
        return sorted({file.rsplit(".", 2)[0] for file in self._store.names("leases") if _is_lease(file)})

    def _discard(self, place: str) -> None:
        """Delete a file, later if it cannot be deleted now."""
        try:
            self._store.delete(place)
        except OSError:
            self._garbage.add(place)

    def _latest(self, name: str) -> Lease | None:
        files = [file for file in self._store.names("leases") if _is_lease(file) and file.rsplit(".", 2)[0] == name]
        if not files:
            return None
        generation = max(int(file.rsplit(".", 2)[1]) for file in files)
        try:
            said = json.loads(self._store.read(_place(name, generation)) or b"")
            owner, host, pid, facts = said["owner"], said["host"], said["pid"], said["facts"]
        except (ValueError, LookupError, TypeError):  # released this moment, or damaged: as if from nobody
            return Lease(name, generation, "", "", 0, {})
        if _is_gone(said):
            owner = ""  # no need to wait for a heartbeat
        return Lease(name, generation, owner, host, pid, facts)

    def _alive(self, lease: Lease) -> bool:
        if not lease.owner:
            return False
        beat, now = self._store.read(f"owners/{lease.owner}.json"), time.monotonic()
        seen = self._beats.get(lease.owner)
        if seen is None or seen[0] != beat:
            seen = self._beats[lease.owner] = (beat, now)
        return now - seen[1] < self._dead_s

    def _beat(self) -> None:
        """The first lease starts the heart."""
        with self._lock:
            if self._heart:
                return
            self._show(0)
            self._heart = threading.Thread(target=self._keep, daemon=True, name="raysweep-heartbeat")
            self._heart.start()

    def _keep(self) -> None:
        count = 0
        while not self._stop.wait(self._beat_s):
            count += 1
            # A storage that cannot be reached for a moment is no reason to die: the next beat may get through.
            with contextlib.suppress(OSError, pa.ArrowException):
                self._show(count)
            for place in list(self._garbage):
                self._garbage.discard(place)
                self._discard(place)

    def _show(self, count: int) -> None:
        facts = {"beat": count, "pid": os.getpid(), **_process()}
        self._store.write(f"owners/{self.owner}.json", json.dumps(facts).encode())


def _place(name: str, generation: int) -> str:
    return f"leases/{name}.{generation:06d}.json"


def _is_lease(file: str) -> bool:
    parts = file.rsplit(".", 2)
    return len(parts) == 3 and parts[1].isdigit() and parts[2] == "json"


def _process() -> dict[str, Any]:
    """Where this process's number means something: its machine since its start, and its namespace of processes."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return {"space": f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"}
    except OSError:
        return {"space": None}


def _is_gone(said: Mapping[str, Any]) -> bool:
    """Whether a process that described itself was one of this very machine, and is not any more."""
    return bool(said["space"]) and said["space"] == _process()["space"] and not _runs(said["pid"])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
