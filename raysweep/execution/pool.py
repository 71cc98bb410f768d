"""A driver's lanes and the work that is given out to them, each piece once, and again when workers die.

Plain asyncio, no Ray: `launch.py` puts it into an actor.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from raysweep.execution.memory import Memory
from raysweep.execution.queue import Queue
from raysweep.execution.task_leases import POLL_S, TaskLeases
from raysweep.execution.tasks import (
    ClaimedElsewhere,
    Demand,
    ExecutionStopped,
    InputDamaged,
    Kind,
    RetriesExhausted,
    Task,
    TaskFailed,
    split,
)
from raysweep.retry import RETRY_LIMIT_S, waiting_for_storage
from trainables.config import ProbeSpec, Run

GATHER_S = 0.3  # that a lane waits for others which could be trained in lockstep with what it has
ATTEMPTS = 5  # at one piece, when workers die under it or what it builds on turns out damaged


class Pool:
    """The lanes of one driver, what each is doing, and what is ready. All methods run on one event loop.

    Args:
        lanes: how many there are.
        claims: what keeps drivers that share a store out of each other's way; None where there is only this one.
        workers: of each lane.
        micro_batch: images that a worker puts through the network at once; None: its whole share of the batch.
        cohort: students of one teacher that a lane trains in lockstep, at most.
    """

    def __init__(
        self, lanes: int, claims: TaskLeases | None, workers: int = 1, micro_batch: int | None = None, cohort: int = 1
    ):
        self.lanes: dict[int, Task | None] = {lane: None for lane in range(lanes)}
        self.groups: dict[int, str] = {}  # lane -> the placement group that its workers live in
        self.served: Counter[int] = Counter()  # pieces of work that a lane has finished
        self.computed_steps = 0
        self.notes: list[str] = []
        self._claims = claims
        self._ready = Queue()
        self._arrived = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._tickets = itertools.count()
        self._watching: set[asyncio.Task[None]] = set()
        self._progress: dict[int, tuple[int, float]] = {}  # lane -> (step, steps/s)
        self._heard: dict[int, float] = {}  # lane -> when it last said something
        self._memory = Memory(workers, micro_batch)
        self._cohort = cohort
        self._silent_since: float | None = None  # the storage
        self._stopping = False
        self._closed = False

    async def join(self, lane: int, group: str | None = None) -> None:
        """A lane's workers have started, in that placement group. What its earlier workers left unfinished is queued
        again, a few times."""
        self._hear(lane)
        if group:
            self.groups[lane] = group
        left, self.lanes[lane] = self.lanes.get(lane), None
        if left and left.attempts < ATTEMPTS and not left.too_big:
            self.notes.append(f"workers of lane {lane} died; {left} starts again")
        for member in split(left):
            if member.attempts < ATTEMPTS:
                member.too_big = False
                member.alone |= member.attempts > 1  # perhaps they are too much for a machine together
                self._queue(member)
            else:
                self._release_lease(member)
                self._answer(member, RetriesExhausted(f"workers died {member.attempts} times during {member}"))

    async def note(self, lane: int, message: str) -> None:
        """A lane has something to tell people."""
        self._hear(lane)
        self._note(f"lane {lane}: {message}")

    async def next(self, lane: int, patience_s: float) -> Task | Literal["wait", "stop"]:
        """The lane's next piece of work, or `wait` when there was none for that long, or `stop`."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience_s
        self._hear(lane)
        while not (self._closed or self._stopping):
            task = self._ready.pop(len(self.lanes))
            if task is None:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), until - clock())
                except TimeoutError:
                    break
            elif await self._claim(task):
                if self._cohort > 1 and task.company:
                    await asyncio.sleep(GATHER_S)  # those who waited for the same teacher come one after the other
                    idle = sum(other == lane or not busy for other, busy in self.lanes.items())
                    fitting = self._ready.fellows(task, self._cohort - 1, idle)
                    task.fellows = [fellow for fellow in fitting if await self._claim(fellow)]
                for member in task.members:
                    member.attempts += 1
                task.micro_batch = self._memory.micro_batch(task)
                self.lanes[lane] = task
                return task
        return "stop" if self._closed or self._stopping else "wait"

    async def progress(self, lane: int, step: int, steps_per_s: float) -> bool:
        """How far the lane's assignment has come; returns whether it is to publish what it has, and stop."""
        self._hear(lane)
        self._progress[lane] = (step, steps_per_s)
        return self._stopping

    async def done(self, lane: int, reached: Sequence[int | None] | None) -> None:
        """The lane has finished and published its assignment; of a stretch, as far as the steps `reached`, of each of
        its members. None: to its end; of one of several: it went wrong, and is to be tried by itself."""
        self._hear(lane)
        self.served[lane] += 1
        members = self._release(lane)
        ends = [member.end for member in members]
        for member, step in zip(members, reached if reached and members else ends, strict=True):
            if step is None:
                member.alone = True
                self._queue(member)
                continue
            if member.kind == "train":
                self.computed_steps += step - member.begin
            self._answer(member, step)

    async def failed(self, lane: int, message: str) -> None:
        """The lane's assignment cannot be done by anybody."""
        self.served[lane] += 1
        self._end(lane, TaskFailed(message))

    async def damaged(self, lane: int, message: str) -> None:
        """What the lane's assignment builds on turned out damaged; whoever asked for it asks again."""
        self._note(message)
        self._end(lane, InputDamaged(message))

    async def out_of_memory(self, lane: int) -> None:
        """A worker of the lane had too little memory for its assignment, and its group starts anew. The next attempt
        puts half as many images through the network at once, if that can be."""
        task = self.lanes.get(lane)
        if task is None or task.too_big:  # another worker has said so
            return
        if task.fellows:
            self._note(f"out of memory in {task}: they are trained one by one from here on")
            task.mark_solo()
            return
        if refused := self._memory.halve(task):
            self._release(lane)
            self._answer(task, TaskFailed(refused))
            return
        task.too_big = True
        task.attempts -= 1
        now = self._memory.micro_batch(task)
        self._note(f"out of memory in {task}: workers take {now} images at once from here on, gradients add up")

    async def lane_lost(self, lane: int, message: str) -> None:
        """A lane is gone for good. With the last one, all that waits ends."""
        for member in split(self.lanes.pop(lane, None)):
            self._queue(member)
        self._note(f"lane {lane} ended: {message}")
        if not self.lanes:
            self._halt(f"no lane is left: {message}")

    async def stop(self) -> None:
        """No more work, and lanes that train publish what they have."""
        self._stopping = True
        self._arrived.set()

    async def close(self) -> None:
        """No more work: lanes stop at their next question."""
        self._closed = True
        self._arrived.set()
        if self._claims:
            await asyncio.to_thread(self._claims.close)

    async def snapshot(self) -> dict[str, Any]:
        """What the driver shows: each lane's work, steps computed, notes since the start."""
        working, now = [], time.monotonic()
        for lane, task in self.lanes.items():
            if task:
                step, rate = self._progress.get(lane, (task.begin, 0.0))
                working.append({"lane": lane, **task.told, "step": step, "steps_per_s": rate})
        return {
            "lanes": working,
            "computed_steps": self.computed_steps,
            "groups": dict(self.groups),
            "served": dict(self.served),
            "silent_s": {lane: now - self._heard[lane] for lane in self._heard},
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
        want: Demand,
        probe: ProbeSpec | None = None,
    ) -> Any:
        task = Task(next(self._tickets), kind, run, begin, end, want, probe, trial, want.teaches)
        self._answers[task.ticket] = asyncio.get_running_loop().create_future()
        if self._closed:
            raise ExecutionStopped("no lane is left")
        self._queue(task)
        try:
            return await self._answers[task.ticket]
        finally:
            del self._answers[task.ticket]

    def _hear(self, lane: int) -> None:
        self._heard[lane] = time.monotonic()

    def _note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)

    def _halt(self, message: str) -> None:
        self._closed = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ExecutionStopped(message))

    def _queue(self, task: Task) -> None:
        self._ready.push(task)
        self._arrived.set()

    async def _claim(self, task: Task) -> bool:
        """Take the lease on a piece of work; where another driver has it, or has done it, see to it that it is asked
        for again in time."""
        if self._claims is None:
            return True
        try:
            taken = await self._claims.take(task)
        except BaseException as error:
            self._queue(task)
            if not isinstance(error, OSError):
                raise
            await self._storage_is_silent(error)
            return False
        self._silent_since = None
        if not taken:
            watching = asyncio.get_running_loop().create_task(self._watch(self._claims, task))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
        return taken

    async def _watch(self, claims: TaskLeases, task: Task) -> None:
        while True:
            try:
                await claims.free(task)
                break
            except OSError as error:
                await self._storage_is_silent(error)
        self._answer(task, ClaimedElsewhere())

    async def _storage_is_silent(self, error: OSError) -> None:
        """Wait a moment for a storage that is full, read-only or away; everything ends where it stays so."""
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        self._note(waiting_for_storage(error))
        if now - self._silent_since > RETRY_LIMIT_S:
            self._halt(f"the storage has not answered for {RETRY_LIMIT_S / 60:.0f} minutes: {error}")
            raise ExecutionStopped(str(error))
        await asyncio.sleep(POLL_S)

    # --- answers

    def _release(self, lane: int) -> list[Task]:
        """The lane's work, which is over; none where an earlier dispatcher had given it out."""
        task, self.lanes[lane] = self.lanes.get(lane), None
        self._progress.pop(lane, None)
        members = split(task)
        for member in members:
            self._release_lease(member)
        return members

    def _end(self, lane: int, error: Exception) -> None:
        for member in self._release(lane):
            self._answer(member, error)

    def _release_lease(self, task: Task) -> None:
        if self._claims:
            self._claims.release(task)

    def _answer(self, task: Task, result: Any) -> None:
        answer = self._answers.get(task.ticket)
        if answer and not answer.done():
            settle = answer.set_exception if isinstance(result, Exception) else answer.set_result
            settle(result)
