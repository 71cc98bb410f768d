"""One driver's claims on work that other drivers of the same store may want too."""

from __future__ import annotations

import asyncio
import math
import time

from raysweep.leases import Lease, Leases
from raysweep.store import Shelf
from raysweep.work import Assignment

POLL_S = 1.0  # between looks at another driver's lease


class Claims:
    """Leases on assignments. `elsewhere` tells of those that others are at, by ticket.

    Raises:
        OSError: from each method, when the storage does not answer.
    """

    def __init__(self, leases: Leases, store: Shelf):
        self._leases, self._store = leases, store
        self._wanted: tuple[float, frozenset[int]] = (-math.inf, frozenset())  # seen when, and what
        self.elsewhere: dict[int, str] = {}

    async def milestones(self) -> frozenset[int]:
        """Where studies of other drivers, now at work on this store, want runs to publish. At most `POLL_S` old."""
        if time.monotonic() - self._wanted[0] > POLL_S:
            await asyncio.to_thread(self._look)
        return self._wanted[1]

    async def take(self, assignment: Assignment) -> bool:
        """Take the lease on a piece of work, unless another driver has it or has done it a moment ago."""
        taken, holder = await asyncio.to_thread(self._try, assignment)
        if holder:
            self.elsewhere[assignment.ticket] = f"{assignment}: by {holder.holder}"
        return taken

    async def free(self, assignment: Assignment) -> None:
        """Return when no other driver has it any more."""
        while await asyncio.to_thread(self._holder, assignment):
            await asyncio.sleep(POLL_S)
        self.elsewhere.pop(assignment.ticket, None)

    def release(self, assignment: Assignment) -> None:
        """Give the lease on a piece of work back."""
        self._leases.release(assignment.lease)

    def close(self) -> None:
        """Give all back."""
        self._leases.close()

    def _try(self, assignment: Assignment) -> tuple[bool, Lease | None]:
        if holder := self._holder(assignment):
            return False, holder
        if assignment.kind == "train" and any(assignment.begin < step < assignment.end for step in self._wanted[1]):
            return False, None  # to be cut anew: another study has come that wants a checkpoint on the way
        facts = {"kind": assignment.kind, "begin": assignment.begin, "end": assignment.end}
        if not self._leases.acquire(assignment.lease, facts | {"run": assignment.run.model_dump_json()}):
            return False, self._leases.holder(assignment.lease)
        # Its last holder may have finished it a moment ago.
        if assignment.kind == "train" and (found := self._store.deepest(assignment.run, assignment.end)):
            if found.step > assignment.begin:
                self.release(assignment)
                return False, None
        return True, None

    def _holder(self, assignment: Assignment) -> Lease | None:
        own = assignment.lease
        for lease in self._look():
            if lease.name == own or assignment.overlaps(lease):
                return lease
        return None

    def _look(self) -> list[Lease]:
        """All that others hold."""
        found = list(self._leases.others())
        wanted = frozenset(step for lease in found for step in lease.facts.get("milestones", []))
        self._wanted = (time.monotonic(), wanted)
        return found
