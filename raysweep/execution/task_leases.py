"""One driver's claims on work that other drivers of the same store may want too."""

from __future__ import annotations

import asyncio
import math
import time

from raysweep.execution.tasks import Task
from raysweep.store.leases import Lease, Leases
from raysweep.store.store import CheckpointIndex

POLL_S = 1.0  # between looks at another driver's lease


class TaskLeases:
    """Leases on assignments. `elsewhere` tells of those that others are at, by ticket.

    Raises:
        OSError: from each method, when the storage does not answer.
    """

    def __init__(self, leases: Leases, store: CheckpointIndex):
        self._leases, self._store = leases, store
        self._wanted: tuple[float, frozenset[int]] = (-math.inf, frozenset())  # seen when, and what
        self.elsewhere: dict[int, str] = {}

    async def milestones(self) -> frozenset[int]:
        """Where studies of other drivers, now at work on this store, want runs to publish. At most `POLL_S` old."""
        if time.monotonic() - self._wanted[0] > POLL_S:
            await asyncio.to_thread(self._look)
        return self._wanted[1]

    async def take(self, task: Task) -> bool:
        """Take the lease on a piece of work, unless another driver has it or has done it a moment ago."""
        taken, holder = await asyncio.to_thread(self._try, task)
        if holder:
            self.elsewhere[task.ticket] = f"{task}: by {holder.holder}"
        return taken

    async def free(self, task: Task) -> None:
        """Return when no other driver has it any more."""
        while await asyncio.to_thread(self._holder, task):
            await asyncio.sleep(POLL_S)
        self.elsewhere.pop(task.ticket, None)

    def release(self, task: Task) -> None:
        """Give the lease on a piece of work back."""
        self._leases.release(task.lease)

    def close(self) -> None:
        """Give all back."""
        self._leases.close()

    def _try(self, task: Task) -> tuple[bool, Lease | None]:
        if holder := self._holder(task):
            return False, holder
        if task.kind == "train" and any(task.begin < step < task.end for step in self._wanted[1]):
            return False, None  # to be cut anew: another study has come that wants a checkpoint on the way
        facts = {"kind": task.kind, "begin": task.begin, "end": task.end}
        if not self._leases.acquire(task.lease, facts | {"run": task.run.model_dump_json()}):
            return False, self._leases.holder(task.lease)
        # Its last holder may have finished it a moment ago.
        if task.kind == "train" and (found := self._store.deepest(task.run, task.end)):
            if found.step > task.begin:
                self.release(task)
                return False, None
        return True, None

    def _holder(self, task: Task) -> Lease | None:
        own = task.lease
        for lease in self._look():
            if lease.name == own or task.overlaps(lease):
                return lease
        return None

    def _look(self) -> list[Lease]:
        """All that others hold."""
        found = list(self._leases.others())
        wanted = frozenset(step for lease in found for step in lease.facts.get("milestones", []))
        self._wanted = (time.monotonic(), wanted)
        return found
