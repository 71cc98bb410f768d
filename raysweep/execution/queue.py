"""The tasks that are ready, and which of them comes first."""

from __future__ import annotations

import heapq
import math

from raysweep.execution.tasks import Demand, Task

PASSED_OVER = 16  # times per lane that work may be passed over before it goes first whatever its rank


class Queue:
    """The work that is ready, first what others wait for."""

    def __init__(self) -> None:
        self._ready: dict[int, tuple[Task, int]] = {}  # with how many had been given out when it came
        self._heap: list[tuple[tuple[int, int], int]] = []
        self._given = 0

    def push(self, task: Task) -> None:
        """Add a piece of work."""
        self._ready[task.ticket] = (task, self._given)
        task.want.queued.add(task.ticket)
        self.renew(task.want)

    def renew(self, want: Demand) -> None:
        """Somebody else wants it: what is ready for it may come earlier."""
        for ticket in want.queued:
            heapq.heappush(self._heap, (_rank(self._ready[ticket][0]), ticket))

    def pop(self, lanes: int) -> Task | None:
        """The piece that is next, if any; nothing is passed over for ever."""
        if not self._ready:
            return None
        chosen, since = next(iter(self._ready.values()))
        if self._given - since < PASSED_OVER * max(1, lanes):
            chosen = self._best()
        return self._take(chosen)

    def fellows(self, task: Task, most: int, idle: int) -> list[Task]:
        """Take what can be trained in lockstep with it: at most `most` pieces, and its share where several lanes are
        idle."""
        company = task.company
        fitting = [other for other, _ in self._ready.values() if company and other.company == company]
        share = math.ceil((len(fitting) + 1) / idle) - 1
        return [self._take(other) for other in fitting[: min(most, share)]]

    def _take(self, chosen: Task) -> Task:
        del self._ready[chosen.ticket]
        chosen.want.queued.discard(chosen.ticket)
        self._given += 1
        return chosen

    def _best(self) -> Task:
        while True:
            rank, ticket = heapq.heappop(self._heap)
            if ticket not in self._ready:  # it had been put in anew, and is gone
                continue
            task, _ = self._ready[ticket]
            if (now := _rank(task)) <= rank:
                return task
            heapq.heappush(self._heap, (now, ticket))  # somebody does not wait for it any more


def _rank(task: Task) -> tuple[int, int]:
    """What several wait for opens work; a probe lets a trial decide; then whoever has the longest way before it, as the
    last of those ends the sweep."""
    want = task.want
    opens = want.teaches or want.waiters > 1
    kind = 0 if opens else {"probe": 1, "train": 2, "replay": 3}[task.kind]
    return (kind, task.begin - task.end - want.ahead)
