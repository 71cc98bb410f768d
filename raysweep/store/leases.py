"""Leases: which driver works on what, among all drivers that share a store.

    generations/<name>/<generation>         who holds, or held, this generation of a lease: created exclusively
    leases/<name>.<generation>.<owner>.<begin>-<end>    a lease that is held, for others to see; what it is on
    owners/<owner>.<scope>.<pid>            an owner's heartbeat, which is written again and again

A generation is taken by creating its file, and its file is never deleted. So two owners never hold the same generation,
and an owner that wakes up late cannot give back what another one holds now. The next generation can be taken once the
owner of the last one has released it or is dead. An owner is alive while its heartbeat changes. Clocks of different
hosts are never compared: each other owner measures by its own clock how long a heartbeat has not changed.

Names and listings say all that a look at other drivers' leases needs. It lists twice and reads nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    """A lease that somebody holds.

    Attributes:
        path: of its file, below the root.
        begin, end: the steps of a task; None for other leases.
        version: changes when the owner writes other facts.
        read: reads the content of its file, once. It is needed for `facts` and `holder` alone.
    """

    path: str
    name: str
    generation: int
    owner: str
    begin: int | None
    end: int | None
    version: str
    read: Callable[[], Mapping[str, Any]]

    @property
    def facts(self) -> LeaseFacts:
        """What it is on."""
        return LeaseFacts.from_dict(self.read().get("facts", {}))

    @property
    def holder(self) -> str:
        """The owner in words."""
        content = self.read()
        return f"process {content.get('pid')} on {content.get('host')}"


class Leases:
    """The leases of one owner. From the first lease on, a thread writes the owner's heartbeat.

    Args:
        beat_s: seconds between two heartbeats.
        dead_s: seconds without a heartbeat after which an owner counts as dead.
    """

    def __init__(self, files: Files, beat_s: float = BEAT_S, dead_s: float = DEAD_S):
        self.owner = uuid.uuid4().hex[:12]
        self._files, self._beat_s, self._dead_s = files, beat_s, dead_s
        self._held: dict[str, tuple[int, str]] = {}  # name -> generation, and the path of the lease
        self._taking: set[str] = set()  # the paths of leases that are being written
        self._undone: list[Callable[[], None]] = []  # writes of `release` that the storage has not accepted yet
        # By owner: the version of its last heartbeat, and when it changed, in seconds of `time.monotonic`.
        self._beats: dict[str, tuple[str, float]] = {}
        self._seen: dict[str, Lease] = {}  # by path: leases of the last look, whose content may have been read
        self._count = 0  # heartbeats
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def acquire(self, name: str, facts: LeaseFacts) -> bool:
        """Take the lease of that name, unless a living owner has it. The new holder must first check whether the work
        has been done already."""
        if name in self._held:
            return True
        generation, owner = self._latest(name)
        if owner not in ("", self.owner) and self._alive(owner):
            return False
        self._start_heartbeat()
        generation += 1
        if not self._files.create(_generation(name, generation), self._claim(released=False)):
            return False
        path = f"leases/{name}.{generation:06d}.{self.owner}.{_steps(facts)}"
        self._taking.add(path)
        try:
            self._files.write(path, json.dumps(_process() | {"facts": facts.as_dict()}).encode())
            if self._last_generation(name) > generation:  # this process stood still, and was taken for dead
                self._files.delete(path)
                return False
            with self._lock:
                self._held[name] = generation, path
            return True
        finally:
            self._taking.discard(path)

    def release(self, name: str) -> None:
        """Give a lease back, if it is held."""
        with self._lock:
            generation, path = self._held.pop(name, (0, ""))
        if generation:
            self._do(lambda: self._files.write(_generation(name, generation), self._claim(released=True)))
            self._do(lambda: self._files.delete(path))

    def clear(self) -> None:
        """Delete the files of dead owners."""
        for lease in self._look():
            if lease.owner != self.owner and not self._lives(lease.owner):
                self._do(functools.partial(self._files.delete, lease.path))
        for entry in self._files.walk("owners"):
            if (owner := _owner(entry.path)) != self.owner and not self._lives(owner):
                self._do(functools.partial(self._files.delete, entry.path))

    def others(self) -> Iterator[Lease]:
        """The leases of other living owners."""
        latest = {lease.name: lease for lease in sorted(self._look(), key=lambda lease: lease.generation)}
        return (lease for lease in latest.values() if lease.owner != self.owner and self._lives(lease.owner))

    def holder(self, name: str) -> Lease | None:
        """The lease of that name, if another living owner holds it."""
        return next((lease for lease in self.others() if lease.name == name), None)

    def beat(self) -> None:
        """Write the heartbeat, then what the storage did not accept when leases were given back."""
        self._count += 1
        # Its size changes too: a folder's listing shows size and time, and the times may be coarse.
        self._files.write(self._own_path, b"." * (self._count % 64))
        with self._lock:
            undone, self._undone = self._undone, []
        for action in undone:
            self._do(action)

    def close(self) -> None:
        """Give all leases back and stop the heartbeat."""
        for name in list(self._held):
            self.release(name)
        self._stop.set()
        if self._heartbeat:
            self._heartbeat.join(timeout=self._dead_s)
            self._do(lambda: self._files.delete(self._own_path))

    # --- inside

    def _latest(self, name: str) -> tuple[int, str]:
        """The last generation of a lease, and its owner; no owner where it was released. (0, "") before the first."""
        generation = self._last_generation(name)
        if not generation:
            return 0, ""
        try:
            claim = json.loads(self._files.read(_generation(name, generation)) or b"")
            return generation, "" if claim["released"] else claim["owner"]
        except (ValueError, LookupError, TypeError):  # damaged: nobody holds it
            return generation, ""

    def _last_generation(self, name: str) -> int:
        numbers = (int(file) for file in self._files.names(f"generations/{name}") if file.isdigit())
        return max(numbers, default=0)

    def _claim(self, released: bool) -> bytes:
        return json.dumps({"owner": self.owner, "released": released}).encode()

    def _look(self) -> list[Lease]:
        """All leases, and the heartbeats of all owners."""
        seen = {}
        for entry in self._files.walk("leases"):  # before the owners: an owner's heartbeat is older than its leases
            lease = self._seen.get(entry.path)
            if lease is None or lease.version != entry.version:
                lease = _parse(entry.path, entry.version, functools.cache(functools.partial(self._content, entry.path)))
            if lease:
                seen[entry.path] = lease
        self._seen = seen
        self._observe()
        self._delete_late(seen.values())
        return list(seen.values())

    def _delete_late(self, leases: Iterable[Lease]) -> None:
        """Delete this owner's leases that it does not hold, for which others would wait. The storage has written them
        after this owner gave up waiting for its answer."""
        with self._lock:
            known = {path for _, path in self._held.values()} | self._taking
        for lease in leases:
            if lease.owner == self.owner and lease.path not in known:
                self._do(functools.partial(self._files.delete, lease.path))

    def _content(self, path: str) -> dict[str, Any]:
        try:
            content = json.loads(self._files.read(path) or b"{}")
            return content if isinstance(content, dict) else {}
        except ValueError:
            return {}

    def _alive(self, owner: str) -> bool:
        self._observe()
        return self._lives(owner)

    def _observe(self) -> None:
        """Note which heartbeats have changed. An owner without one has ended."""
        now, beats = time.monotonic(), {}
        for entry in self._files.walk("owners"):
            owner = _owner(entry.path)
            if _has_ended(entry.path):
                continue
            version, since = self._beats.get(owner, ("", now))
            beats[owner] = (entry.version, since if version == entry.version else now)
        self._beats = beats

    def _lives(self, owner: str) -> bool:
        """Whether an owner was alive when the owners were last observed."""
        _, since = self._beats.get(owner, ("", -self._dead_s))
        return owner in self._beats and time.monotonic() - since < self._dead_s

    @property
    def _own_path(self) -> str:
        return f"owners/{self.owner}.{_scope()}.{os.getpid()}"

    def _start_heartbeat(self) -> None:
        if self._heartbeat:
            return
        self._files.write(self._own_path, b"")  # without the lock: the storage may take any time
        with self._lock:
            if not self._heartbeat:
                self._heartbeat = threading.Thread(target=self._keep_alive, daemon=True, name="raysweep-heartbeat")
                self._heartbeat.start()

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._beat_s):
            # A storage that is away for a moment must not end this thread: the next heartbeat may get through.
            with contextlib.suppress(OSError):
                self.beat()

    def _do(self, action: Callable[[], None]) -> None:
        """Do it now; if the storage does not accept it, the heartbeat's thread does it later."""
        try:
            action()
        except OSError:
            with self._lock:
                self._undone.append(action)


def _generation(name: str, generation: int) -> str:
    return f"generations/{name}/{generation:06d}"


def _steps(facts: LeaseFacts) -> str:
    return "" if facts.begin is None or facts.end is None else f"{facts.begin}-{facts.end}"


def _parse(path: str, version: str, read: Callable[[], Mapping[str, Any]]) -> Lease | None:
    """The lease with that path; None for a file of an earlier version, or a foreign one."""
    parts = path.removeprefix("leases/").rsplit(".", 3)
    if len(parts) != 4 or not parts[1].isdigit():
        return None
    begin, end = (int(step) if step.isdigit() else None for step in parts[3].partition("-")[::2])
    return Lease(path, parts[0], int(parts[1]), parts[2], begin, end, version, read)


def _owner(path: str) -> str:
    return path.removeprefix("owners/").partition(".")[0]


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


@functools.cache
def _scope() -> str:
    """Names the scope in which this process's id is unique: the machine since its last boot, and the namespace of ids;
    `none` where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            scope = f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "none"
    return hashlib.sha256(scope.encode()).hexdigest()[:12]


def _has_ended(path: str) -> bool:
    """Whether the owner of a heartbeat was a process of this machine and has ended."""
    _, scope, pid = f"{path}..".split(".")[:3]
    return scope != "none" and scope == _scope() and pid.isdigit() and not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
