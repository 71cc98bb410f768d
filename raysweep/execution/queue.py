"""The tasks that are ready, and which of them is given out first."""

from __future__ import annotations

import heapq
import math

from raysweep.execution.tasks import Demand, Task

PASSED_OVER = 16  # a task goes first when this many tasks per lane were given out before it


class Queue:
    """The tasks that are ready, in the order of their ranks."""

    def __init__(self) -> None:
        self._ready: dict[int, tuple[Task, int]] = {}  # ticket -> the task, and how many were given out before it came
        self._heap: list[tuple[tuple[int, int], int]] = []  # (rank, ticket); entries may be out of date
        self._given = 0

    def push(self, task: Task) -> None:
        """Add a task."""
        self._ready[task.ticket] = (task, self._given)
        task.demand.queued.add(task.ticket)
        self.renew(task.demand)

    def renew(self, demand: Demand) -> None:
        """Rank the ready tasks of a demand anew, after the demand has grown."""
        for ticket in demand.queued:
            heapq.heappush(self._heap, (_rank(self._ready[ticket][0]), ticket))

    def pop(self, lanes: int) -> Task | None:
        """Take the next task; None when none is ready. A task that was passed over `PASSED_OVER` times per lane goes
        first whatever its rank."""
        if not self._ready:
            return None
        oldest, since = next(iter(self._ready.values()))
        if self._given - since >= PASSED_OVER * max(1, lanes):
            return self._take(oldest)
        return self._take(self._first())

    def pop_members(self, task: Task, most: int, idle: int) -> list[Task]:
        """Take other tasks that form a cohort with `task`: at most `most`, and no more than one lane's share if the
        tasks are spread over the `idle` lanes."""
        key = task.cohort_key
        matching = [other for other, _ in self._ready.values() if key and other.cohort_key == key]
        share = math.ceil((len(matching) + 1) / idle) - 1
        return [self._take(other) for other in matching[: min(most, share)]]

    def _take(self, task: Task) -> Task:
        del self._ready[task.ticket]
        task.demand.queued.discard(task.ticket)
        self._given += 1
        return task

    def _first(self) -> Task:
        while True:
            rank, ticket = heapq.heappop(self._heap)
            if ticket not in self._ready:  # it was ranked anew and has been taken since
                continue
            task, _ = self._ready[ticket]
            current = _rank(task)
            if current <= rank:
                return task
            heapq.heappush(self._heap, (current, ticket))  # the demand has shrunk


def _rank(task: Task) -> tuple[int, int]:
    """The rank of a task; the lowest is given out first. Tasks that several callers wait for come first, because they
    let several trials continue. Probes come next, because the scheduler decides by them. Among the rest, the task whose
    run has the most steps left comes first, because the longest run determines when the sweep ends."""
    demand = task.demand
    shared = demand.teaches or demand.waiters > 1
    kind = 0 if shared else {"probe": 1, "train": 2, "replay": 3}[task.kind]
    return (kind, task.begin - task.end - demand.ahead)
