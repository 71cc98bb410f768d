"""One driver's leases on tasks. With them, drivers that share a store divide the tasks among themselves."""

from __future__ import annotations

import asyncio
import math
import time

from raysweep.execution.tasks import Task
from raysweep.store.leases import Lease, LeaseFacts, Leases
from raysweep.store.store import CheckpointIndex

POLL_S = 1.0  # between two looks at other drivers' leases


class TaskLeases:
    """Leases on tasks.

    Attributes:
        elsewhere: ticket -> a description of a task that another driver works on, for the user.

    Raises:
        OSError: from each method, when the storage does not answer.
    """

    def __init__(self, leases: Leases, store: CheckpointIndex):
        self._leases, self._store = leases, store
        self._milestones: frozenset[int] = frozenset()  # of other drivers' studies
        self._read_at = -math.inf  # when other drivers' leases were last read, in seconds of `time.monotonic`
        self.elsewhere: dict[int, str] = {}

    async def milestones(self) -> frozenset[int]:
        """The steps at which the studies of other drivers on this store need checkpoints. At most `POLL_S` old."""
        if time.monotonic() - self._read_at > POLL_S:
            await asyncio.to_thread(self._other_leases)
        return self._milestones

    async def take(self, task: Task) -> bool:
        """Take the lease on a task. False where another driver has it or has just done the task, or where the task has
        to be cut at another driver's milestone first."""
        taken, holder = await asyncio.to_thread(self._try_acquire, task)
        if holder:
            self.elsewhere[task.ticket] = f"{task}: by {holder.holder}"
        return taken

    async def free(self, task: Task) -> None:
        """Return once no other driver holds a lease on the task."""
        while await asyncio.to_thread(self._holder, task):
            await asyncio.sleep(POLL_S)
        self.elsewhere.pop(task.ticket, None)

    def release(self, task: Task) -> None:
        """Give back the lease on a task."""
        self._leases.release(task.lease)

    def close(self) -> None:
        """Give back all leases."""
        self._leases.close()

    def _try_acquire(self, task: Task) -> tuple[bool, Lease | None]:
        if holder := self._holder(task):
            return False, holder
        if task.kind == "train" and any(task.begin < step < task.end for step in self._milestones):
            return False, None  # another study needs a checkpoint in between
        facts = LeaseFacts(task.kind, task.begin, task.end, task.run.model_dump_json())
        if not self._leases.acquire(task.lease, facts):
            return False, self._leases.holder(task.lease)
        if task.kind == "train":  # the last holder may have finished the task a moment ago
            checkpoint = self._store.deepest(task.run, task.end)
            if checkpoint and checkpoint.step > task.begin:
                self.release(task)
                return False, None
        return True, None

    def _holder(self, task: Task) -> Lease | None:
        name = task.lease
        for lease in self._other_leases():
            if lease.name == name or task.overlaps(lease):
                return lease
        return None

    def _other_leases(self) -> list[Lease]:
        """Read all leases that other drivers hold, and note their milestones."""
        leases = list(self._leases.others())
        self._milestones = frozenset(step for lease in leases for step in lease.facts.milestones or ())
        self._read_at = time.monotonic()
        return leases
