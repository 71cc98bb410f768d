"""A driver's lanes and the work that is given out to them, each piece once, and again when workers die.

Plain asyncio, no Ray: `launch.py` puts it into an actor.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Literal

from raysweep.claims import POLL_S, Claims
from raysweep.work import Assignment, Kind, Queue, Want
from trainables.spec import ProbeSpec, Run

ATTEMPTS = 3  # at one piece, when workers die under it or what it builds on turns out damaged


class WorkFailed(Exception):
    """A stretch or a probe cannot be had; the message is for people."""


class Again(Exception):
    """Ask once more: what was there is not there any more."""


class Elsewhere(Exception):
    """Ask once more: another driver was at it, and is not any more."""


class Pool:
    """The lanes of one driver, what each is doing, and what is ready. All methods run on one event loop.

    Args:
        lanes: how many there are.
        claims: what keeps drivers that share a store out of each other's way; None where there is only this one.
    """

    def __init__(self, lanes: int, claims: Claims | None):
        self.lanes: dict[int, Assignment | None] = {lane: None for lane in range(lanes)}
        self.computed_steps = 0
        self.notes: list[str] = []
        self._claims = claims
        self._ready = Queue()
        self._arrived = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._tickets = itertools.count()
        self._watching: set[asyncio.Task[None]] = set()
        self._progress: dict[int, tuple[int, float]] = {}  # lane -> (step, steps/s)
        self._closed = False

    async def join(self, lane: int) -> None:
        """A lane's workers have started. What its earlier workers left unfinished is queued again, a few times."""
        left, self.lanes[lane] = self.lanes[lane], None
        if left is None:
            return
        if left.attempts < ATTEMPTS:
            self.notes.append(f"workers of lane {lane} died; {left} starts again")
            self._queue(left)
        else:
            if self._claims:
                self._claims.release(left)
            self._answer(left, WorkFailed(f"workers died {left.attempts} times during {left}"))

    async def next(self, lane: int, patience_s: float) -> Assignment | Literal["wait", "stop"]:
        """The lane's next piece of work, or `wait` when there was none for that long, or `stop`."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience_s
        while not self._closed:
            assignment = self._ready.pop(len(self.lanes))
            if assignment is None:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), until - clock())
                except TimeoutError:
                    break
            elif await self._claim(assignment):
                assignment.attempts += 1
                self.lanes[lane] = assignment
                return assignment
        return "stop" if self._closed else "wait"

    async def progress(self, lane: int, step: int, steps_per_s: float) -> None:
        """How far the lane's assignment has come."""
        self._progress[lane] = (step, steps_per_s)

    async def done(self, lane: int, result: Any) -> None:
        """The lane has finished and published its assignment."""
        assignment = self._release(lane)
        if assignment.kind == "train":
            self.computed_steps += assignment.end - assignment.begin
        self._answer(assignment, result)

    async def failed(self, lane: int, message: str) -> None:
        """The lane's assignment cannot be done by anybody."""
        self._answer(self._release(lane), WorkFailed(message))

    async def damaged(self, lane: int, message: str) -> None:
        """What the lane's assignment builds on turned out damaged; whoever asked for it asks again."""
        self.notes.append(message)
        self._answer(self._release(lane), Again(message))

    async def lane_lost(self, lane: int, message: str) -> None:
        """A lane is gone for good. With the last one, all that waits fails."""
        left = self.lanes.pop(lane, None)
        if left:
            self._queue(left)
        self.notes.append(f"lane {lane} ended: {message}")
        if not self.lanes:
            self._closed = True
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(WorkFailed(f"no lane is left: {message}"))

    async def close(self) -> None:
        """No more work: lanes stop at their next question."""
        self._closed = True
        self._arrived.set()
        if self._claims:
            await asyncio.to_thread(self._claims.close)

    async def snapshot(self) -> dict[str, Any]:
        """What the driver shows: each lane's work, steps computed, notes since the start."""
        working = []
        for lane, assignment in self.lanes.items():
            if assignment:
                step, rate = self._progress.get(lane, (assignment.begin, 0.0))
                facts: dict[str, Any] = {
                    "kind": assignment.kind,
                    "trial": assignment.owner,
                    "teacher": assignment.is_teacher,
                }
                facts |= {
                    "method": assignment.run.phase_after(assignment.begin - (assignment.kind == "probe")).term.kind
                }
                working.append({"lane": lane, **facts, "step": step, "end": assignment.end, "steps_per_s": rate})
        return {
            "lanes": working,
            "computed_steps": self.computed_steps,
            "elsewhere": sorted(self._claims.elsewhere.values()) if self._claims else [],
            "notes": list(self.notes),
        }

    # --- inside

    async def _work(
        self,
        kind: Kind,
        run: Run,
        begin: int,
        end: int,
        trial: str | None,
        want: Want,
        probe: ProbeSpec | None = None,
    ) -> Any:
        assignment = Assignment(next(self._tickets), kind, run, begin, end, want, probe, trial, want.teaches)
        self._answers[assignment.ticket] = asyncio.get_running_loop().create_future()
        if not self.lanes:
            raise WorkFailed("no lane is left")
        self._queue(assignment)
        try:
            return await self._answers[assignment.ticket]
        finally:
            del self._answers[assignment.ticket]

    def _queue(self, assignment: Assignment) -> None:
        self._ready.push(assignment)
        self._arrived.set()

    async def _claim(self, assignment: Assignment) -> bool:
        """Take the lease on a piece of work; where another driver has it, or has done it, see to it that it is asked
        for again in time."""
        if self._claims is None:
            return True
        try:
            taken = await self._claims.take(assignment)
        except BaseException as error:
            self._queue(assignment)
            if not isinstance(error, OSError):
                raise
            await self._storage_is_silent(error)
            return False
        if not taken:
            watching = asyncio.get_running_loop().create_task(self._watch(self._claims, assignment))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
        return taken

    async def _watch(self, claims: Claims, assignment: Assignment) -> None:
        while True:
            try:
                await claims.free(assignment)
                break
            except OSError as error:
                await self._storage_is_silent(error)
        self._answer(assignment, Elsewhere())

    async def _storage_is_silent(self, error: OSError) -> None:
        told = f"the storage does not answer, trying again: {error}"
        if told not in self.notes:
            self.notes.append(told)
        await asyncio.sleep(POLL_S)

    # --- answers

    def _release(self, lane: int) -> Assignment:
        assignment, self.lanes[lane] = self.lanes[lane], None
        self._progress.pop(lane, None)
        if assignment is None:
            raise RuntimeError(f"lane {lane} answered without an assignment")
        if self._claims:
            self._claims.release(assignment)
        return assignment

    def _answer(self, assignment: Assignment, result: Any) -> None:
        answer = self._answers.get(assignment.ticket)
        if answer is None or answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
