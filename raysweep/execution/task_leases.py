"""One driver's leases on tasks, by which drivers that share a store divide the tasks among them."""

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
        elsewhere: the tasks that other drivers work on, as text for people, by ticket.

    Raises:
        OSError: from each method, when the storage does not answer.
    """

    def __init__(self, leases: Leases, store: CheckpointIndex):
        self._leases, self._store = leases, store
        self._milestones: frozenset[int] = frozenset()  # of other drivers
        self._looked = -math.inf  # when
        self.elsewhere: dict[int, str] = {}

    async def milestones(self) -> frozenset[int]:
        """The steps at which the studies of other drivers on this store need checkpoints. At most `POLL_S` old."""
        if time.monotonic() - self._looked > POLL_S:
            await asyncio.to_thread(self._others)
        return self._milestones

    async def take(self, task: Task) -> bool:
        """Take the lease on a task. False where another driver has it or has just done the task, or where the task has
        to be cut at another driver's milestone first."""
        taken, holder = await asyncio.to_thread(self._try, task)
        if holder:
            self.elsewhere[task.ticket] = f"{task}: by {holder.holder}"
        return taken

    async def free(self, task: Task) -> None:
        """Return when no other driver holds a lease on it."""
        while await asyncio.to_thread(self._holder, task):
            await asyncio.sleep(POLL_S)
        self.elsewhere.pop(task.ticket, None)

    def release(self, task: Task) -> None:
        """Give back the lease on a task."""
        self._leases.release(task.lease)

    def close(self) -> None:
        """Give back all leases."""
        self._leases.close()

    def _try(self, task: Task) -> tuple[bool, Lease | None]:
        if holder := self._holder(task):
            return False, holder
        if task.kind == "train" and any(task.begin < step < task.end for step in self._milestones):
            return False, None  # another study has come that needs a checkpoint in between
        facts = LeaseFacts(task.kind, task.begin, task.end, task.run.model_dump_json())
        if not self._leases.acquire(task.lease, facts):
            return False, self._leases.holder(task.lease)
        if task.kind == "train":  # its last holder may have finished it a moment ago
            checkpoint = self._store.deepest(task.run, task.end)
            if checkpoint and checkpoint.step > task.begin:
                self.release(task)
                return False, None
        return True, None

    def _holder(self, task: Task) -> Lease | None:
        name = task.lease
        for lease in self._others():
            if lease.name == name or task.overlaps(lease):
                return lease
        return None

    def _others(self) -> list[Lease]:
        """All leases that other drivers hold."""
        leases = list(self._leases.others())
        self._milestones = frozenset(step for lease in leases for step in lease.facts.milestones or ())
        self._looked = time.monotonic()
        return leases
