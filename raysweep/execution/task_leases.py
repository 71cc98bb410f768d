"""One driver's leases on tasks. With them, drivers that share a store divide the tasks among themselves."""

from __future__ import annotations

import asyncio
import math
import time
from weakref import WeakValueDictionary

from raysweep.execution.tasks import Task, TaskOutdated
from raysweep.store.leases import Lease, LeaseFacts, Leases
from raysweep.store.records import Certificate, ProbeRecord
from raysweep.store.store import CheckpointIndex

POLL_S = 1.0  # between two looks at other drivers' leases
YIELD_S = 0.2  # between two looks of a driver that lets another one give its lease back
LOOKS = 5  # how often it looks before it gives its own lease back


class TaskLeases:
    """Leases on tasks. All storage calls run in threads.

    Of drivers whose segments have steps in common, at most one trains at a time. Where the segments begin at the same
    step, their leases have the same name, which only one driver can create. Otherwise each driver creates its lease,
    looks at all leases, and begins only after a look that showed no lease on a common step. Suppose that two drivers
    had begun. Of their two leases, one was created later. Its owner looked after that, when the other's lease was there
    and, as its owner trained, was not given back. So this look showed it, and the owner did not begin.

    If both see each other, the one whose segment begins later gives its lease back. The other one looks again a few
    times, and gives its lease back too if the first one is still there, because that one has begun before.

    Attributes:
        milestones: the steps at which the studies of other drivers on this store need checkpoints, as last read.
        elsewhere: ticket -> a description of a task that another driver works on, for the user.

    Raises:
        OSError: from each method, when the storage does not answer.
    """

    def __init__(self, leases: Leases, store: CheckpointIndex):
        self._leases, self._store = leases, store
        self._read_at = -math.inf  # when other drivers' leases were last read, in seconds of `time.monotonic`
        # One lease is not taken and given back at once: threads could do it in the wrong order.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.milestones: frozenset[int] = frozenset()
        self.elsewhere: dict[int, str] = {}

    async def refresh(self) -> None:
        """Make `milestones` at most `POLL_S` old."""
        if time.monotonic() - self._read_at > POLL_S:
            await asyncio.to_thread(self._other_leases)

    async def take(self, task: Task) -> bool:
        """Take the lease on a task. False where another driver has it.

        Raises:
            TaskOutdated: another driver has just done the task, or a part of it.
        """
        async with self._lock(task):
            holder = await asyncio.to_thread(self._try_acquire, task)
        if holder:
            self.elsewhere[task.ticket] = f"{task}: by {holder}"
        return holder is None

    async def free(self, task: Task) -> None:
        """Return once no other driver holds a lease on the task."""
        while await asyncio.to_thread(self._holder, task):
            await asyncio.sleep(POLL_S)
        self.elsewhere.pop(task.ticket, None)

    async def release(self, task: Task) -> None:
        """Give back the lease on a task, if it is held."""
        async with self._lock(task):
            await asyncio.to_thread(self._leases.release, task.lease)

    def close(self) -> None:
        """Give back all leases."""
        self._leases.close()

    def _lock(self, task: Task) -> asyncio.Lock:
        return self._locks.setdefault(task.lease, asyncio.Lock())

    def _try_acquire(self, task: Task) -> str | None:
        """Take the lease on a task, and return None; or return the driver that has it, in words."""
        if holder := self._holder(task):
            return holder.holder
        facts = LeaseFacts(task.kind, task.begin, task.end, task.run.model_dump_json())
        if not self._leases.acquire(task.lease, facts):
            if holder := self._leases.holder(task.lease):
                return holder.holder
            raise TaskOutdated  # its holder has just given it back
        if (rival := self._rival(task)) or self._is_done(task):
            self._leases.release(task.lease)
            if not rival:
                raise TaskOutdated
        return rival.holder if rival else None

    def _rival(self, task: Task) -> Lease | None:
        """The lease of another driver that trains a step of this task, whose lease is held; None where there is none
        or it was given back."""
        if task.kind != "train":  # the name of the lease says it all
            return None
        for look in range(LOOKS):
            rival = self._holder(task)
            if rival is None or (rival.begin or 0) < task.begin:
                return rival
            if look < LOOKS - 1:
                time.sleep(YIELD_S)
        return rival

    def _is_done(self, task: Task) -> bool:
        """Whether the task or a part of it is in the store: its last holder may have finished it a moment ago."""
        if task.kind == "train":
            deepest = self._store.deepest(task.run, task.end)
            return deepest is not None and deepest.step > task.begin
        kind = ProbeRecord if task.kind == "probe" else Certificate
        return self._store.record(kind, task.result) is not None

    def _holder(self, task: Task) -> Lease | None:
        name = task.lease
        for lease in self._other_leases():
            if lease.name == name or task.overlaps(lease):
                return lease
        return None

    def _other_leases(self) -> list[Lease]:
        """Read all leases that other drivers hold, and note their milestones."""
        leases = list(self._leases.others())
        studies = (lease for lease in leases if lease.name.startswith("study-"))  # the content of others is not read
        self.milestones = frozenset(step for lease in studies for step in lease.facts.milestones or ())
        self._read_at = time.monotonic()
        return leases
