"""The pool: the lanes of one driver, the tasks that are ready, and which lane works on which task.

A lane is a group of workers that train together (Ray Train's worker group). The module uses plain asyncio and no Ray:
`actor.py` puts the pool into an actor.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from raysweep import retry
from raysweep.execution.memory import Memory
from raysweep.execution.queue import Queue
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import (
    ClaimedElsewhere,
    Demand,
    ExecutionStopped,
    InputDamaged,
    RetriesExhausted,
    Task,
    TaskFailed,
    describe,
)
from raysweep.study.activity import Activity, LaneActivity

GATHER_S = 0.3  # how long a lane waits for other tasks that could join its cohort
ATTEMPTS = 5  # at one task, if its workers die or its inputs are damaged

Result = TypeVar("Result")


@dataclass
class LaneState:
    """What the pool knows of one lane.

    Attributes:
        tasks: the task that it works on, or the cohort that it trains in lockstep. Empty while it is idle.
        step: the step that it last reported; None before its first report.
        steps_per_s: the speed that it last reported.
        served: how often it has finished what it was given.
        placement_group: Ray's id of the placement group of its workers.
        last_message: when it last sent a message, in seconds of `time.monotonic`.
        out_of_memory: whether a worker has reported that it ran out of memory during these tasks. Reports of other
            workers are then ignored.
    """

    tasks: list[Task] = field(default_factory=list)
    step: int | None = None
    steps_per_s: float = 0.0
    served: int = 0
    placement_group: str | None = None
    last_message: float | None = None
    out_of_memory: bool = False

    def assign(self, tasks: list[Task]) -> None:
        """Give the lane these tasks, or none, in place of what it had."""
        self.tasks, self.step, self.steps_per_s, self.out_of_memory = tasks, None, 0.0, False


@dataclass(frozen=True)
class PoolStatus:
    """What a pool reports to its driver.

    Attributes:
        activity: what the lanes are doing, for the terminal.
        groups: lane -> Ray's id of the placement group of its workers; absent until they have started.
        served: lane -> how often it has finished what it was given.
        silent_s: lane -> seconds since its last message.
    """

    activity: Activity = field(default_factory=Activity)
    groups: dict[int, str] = field(default_factory=dict)
    served: dict[int, int] = field(default_factory=dict)
    silent_s: dict[int, float] = field(default_factory=dict)


class Pool:
    """The lanes of one driver, their tasks, and the tasks that are ready. All methods run on one event loop.

    Args:
        lanes: how many there are.
        leases: divides tasks among the drivers that share a store; None where there is only this driver.
        workers: the fewest workers of a lane.
        micro_batch: images that a worker puts through the network at once; None: its whole share of the batch.
        cohort: the most students of one teacher that a lane trains in lockstep.
    """

    def __init__(
        self, lanes: int, leases: TaskLeases | None, workers: int = 1, micro_batch: int | None = None, cohort: int = 1
    ):
        self.lanes = {lane: LaneState() for lane in range(lanes)}
        self.leases = leases
        self.computed_steps = 0
        self.notes: list[str] = []
        self._ready = Queue()
        self._arrived = asyncio.Event()  # set when a task has become ready, or when no more tasks are given out
        self._answers: dict[int, asyncio.Future[int | None]] = {}  # by ticket
        self._tickets = itertools.count()
        self._watching: set[asyncio.Task[None]] = set()
        self._memory = Memory(workers, micro_batch)
        self._cohort = cohort
        self._outage = retry.StorageOutage(self.add_note, remind_s=0)
        self._stopping = False
        self._closed = False

    # --- for the dispatcher

    async def submit(self, task: Task) -> int | None:
        """Queue a task and wait until a lane has finished it. Returns the step that was reached: less than `task.end`
        when the lane was asked to stop.

        Raises:
            TaskFailed: the task cannot be done, and repeating it would not help.
            RetriesExhausted: a TaskFailed; the workers died too often.
            ExecutionStopped: no lane is left, or the storage is unusable.
            InputDamaged: an input of the task is damaged: have it computed again, then submit the task again.
            ClaimedElsewhere: another driver worked on the task and no longer does.
        """
        task.ticket = next(self._tickets)
        answer = self._answers[task.ticket] = asyncio.get_running_loop().create_future()
        try:
            if self._closed:
                raise ExecutionStopped("no lane is left")
            self._queue(task)
            return await answer
        finally:
            del self._answers[task.ticket]

    def renew(self, demand: Demand) -> None:
        """Rank the ready tasks of a demand anew, after the demand has grown."""
        self._ready.renew(demand)

    async def retry_storage(self, action: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of `action`, which is repeated while it raises an OSError.

        Raises:
            ExecutionStopped: the storage stayed unusable for `retry.RETRY_LIMIT_S`.
        """
        while True:
            try:
                result = await action()
            except OSError as error:
                await self._wait_for_storage(error)
            else:
                self._outage.succeeded()
                return result

    def add_note(self, message: str) -> None:
        """Add a message for the user, unless it is already there."""
        if message not in self.notes:
            self.notes.append(message)

    # --- for the lanes

    async def join(self, lane: int, placement_group: str | None = None) -> None:
        """Register a lane whose workers have started. Tasks that its earlier workers left unfinished are queued
        again."""
        state = self._lane(lane)
        self._record_message(lane)
        if placement_group:
            state.placement_group = placement_group
        unfinished, out_of_memory = state.tasks, state.out_of_memory
        state.assign([])
        if unfinished and unfinished[0].attempts < ATTEMPTS and not out_of_memory:
            self.notes.append(f"workers of lane {lane} died; {describe(unfinished)} starts again")
        for task in unfinished:
            if task.attempts < ATTEMPTS:
                task.solo |= task.attempts > 1  # the cohort may need too much memory
                self._queue(task)
            else:
                self._release_lease(task)
                self._answer(task, RetriesExhausted(f"workers died {task.attempts} times during {task}"))

    async def note(self, lane: int, message: str) -> None:
        """Add a lane's message for the user."""
        self._record_message(lane)
        self.add_note(f"lane {lane}: {message}")

    async def next(self, lane: int, timeout_s: float) -> list[Task] | Literal["wait", "stop"]:
        """The lane's next task, or a cohort to be trained in lockstep; `wait` if nothing became ready within
        `timeout_s` seconds; `stop` if no more tasks will be given out."""
        clock = asyncio.get_running_loop().time
        until = clock() + timeout_s
        self._record_message(lane)
        while not self._ended:
            task = self._ready.pop(len(self.lanes))
            if task is None:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), until - clock())
                except TimeoutError:
                    break
            elif await self._take_lease(task):
                tasks = [task, *await self._members(lane, task)]
                for member in tasks:
                    member.attempts += 1
                    member.micro_batch = self._memory.micro_batch(task)
                self._lane(lane).assign(tasks)
                return tasks
        return "stop" if self._ended else "wait"

    async def progress(self, lane: int, step: int, steps_per_s: float) -> bool:
        """Record how far the lane has come. Returns whether it should save a checkpoint and stop."""
        self._record_message(lane)
        if state := self.lanes.get(lane):
            state.step, state.steps_per_s = step, steps_per_s
        return self._stopping

    async def done(self, lane: int, reached: Sequence[int | None] | None) -> None:
        """Record that the lane has finished its tasks and committed the results.

        Args:
            reached: `reached[i]` is the last step that task i was trained to. None in place of a step means that the
                task failed in its cohort; it is queued again, to be trained by itself. If `reached` itself is None,
                each task has reached its end.
        """
        self._record_message(lane)
        tasks = self._finish(lane)
        ends = [task.end for task in tasks]
        for task, step in zip(tasks, reached if reached and tasks else ends, strict=True):
            if step is None:
                task.solo = True
                self._queue(task)
                continue
            if task.kind == "train":
                self.computed_steps += step - task.begin
            self._answer(task, step)

    async def failed(self, lane: int, message: str) -> None:
        """Record that the lane's tasks cannot be done, and that repeating them would not help."""
        for task in self._finish(lane):
            self._answer(task, TaskFailed(message))

    async def damaged(self, lane: int, message: str) -> None:
        """Record that an input of the lane's tasks is damaged. The callers that wait for them ask again."""
        self.add_note(message)
        for task in self._release(lane):
            self._answer(task, InputDamaged(message))

    async def out_of_memory(self, lane: int) -> None:
        """Record that a worker of the lane ran out of memory. Its group restarts, and this attempt does not count. The
        next attempt trains a cohort's tasks one by one, or puts half as many images through the network at once."""
        state = self.lanes.get(lane)
        if state is None or not state.tasks or state.out_of_memory:  # the last: another worker has reported it
            return
        task, text = state.tasks[0], describe(state.tasks)
        if len(state.tasks) > 1:
            self.add_note(f"out of memory in {text}: they are trained one by one from here on")
            for member in state.tasks:
                member.solo = True
        elif refusal := self._memory.halve(task):
            self._release(lane)
            self._answer(task, TaskFailed(refusal))
            return
        else:
            images = self._memory.micro_batch(task)
            self.add_note(f"out of memory in {text}: workers take {images} images at a time from here on")
        state.out_of_memory = True
        for member in state.tasks:
            member.attempts -= 1

    # --- for the driver

    async def lane_lost(self, lane: int, message: str) -> None:
        """Remove a lane that has ended for good. If it was the last one, all callers that wait get an
        `ExecutionStopped`."""
        if state := self.lanes.pop(lane, None):
            for task in state.tasks:
                self._queue(task)
        self.add_note(f"lane {lane} ended: {message}")
        if not self.lanes:
            self._halt(f"no lane is left: {message}")

    async def stop(self) -> None:
        """Give out no more tasks. The lanes that train save a checkpoint and stop."""
        self._stopping = True
        self._arrived.set()

    async def close(self) -> None:
        """Give out no more tasks. The lanes stop when they ask for the next one."""
        self._closed = True
        self._arrived.set()
        if self.leases:
            await asyncio.to_thread(self.leases.close)

    async def status(self) -> PoolStatus:
        """What the driver shows, and by which it restarts lanes."""
        now, lanes = time.monotonic(), self.lanes.items()
        return PoolStatus(
            Activity(
                [_activity(state) for _, state in lanes if state.tasks],
                self.computed_steps,
                sorted(self.leases.elsewhere.values()) if self.leases else [],
                list(self.notes),
            ),
            {lane: state.placement_group for lane, state in lanes if state.placement_group},
            {lane: state.served for lane, state in lanes if state.served},
            {lane: now - state.last_message for lane, state in lanes if state.last_message is not None},
        )

    # --- inside

    @property
    def _ended(self) -> bool:
        return self._closed or self._stopping

    def _lane(self, lane: int) -> LaneState:
        """The state of a lane. A lane that was given up but calls again gets a new state."""
        return self.lanes.setdefault(lane, LaneState())

    def _record_message(self, lane: int) -> None:
        if state := self.lanes.get(lane):
            state.last_message = time.monotonic()

    def _queue(self, task: Task) -> None:
        self._ready.push(task)
        self._arrived.set()

    async def _members(self, lane: int, task: Task) -> list[Task]:
        """The other members of a cohort with `task`. Students of one teacher become ready one after another, so this
        waits a moment for them."""
        if self._cohort == 1 or not task.cohort_key:
            return []
        await asyncio.sleep(GATHER_S)
        idle = sum(other == lane or not state.tasks for other, state in self.lanes.items())
        matching = self._ready.pop_members(task, self._cohort - 1, idle)
        return [member for member in matching if await self._take_lease(member)]

    async def _take_lease(self, task: Task) -> bool:
        """Take the lease on a task. False if another driver holds the lease or has done the task: once the lease is
        free, the callers that wait for the task get a `ClaimedElsewhere` and ask again."""
        if self.leases is None:
            return True
        try:
            taken = await self.leases.take(task)
        except BaseException as error:
            self._queue(task)
            if not isinstance(error, OSError):
                raise
            await self._wait_for_storage(error)
            return False
        self._outage.succeeded()
        if not taken:
            watching = asyncio.get_running_loop().create_task(self._watch(self.leases, task))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
        return taken

    async def _watch(self, leases: TaskLeases, task: Task) -> None:
        await self.retry_storage(lambda: leases.free(task))
        self._answer(task, ClaimedElsewhere())

    async def _wait_for_storage(self, error: OSError) -> None:
        if not self._outage.failed(error):
            self._halt(retry.gave_up(error))
            raise ExecutionStopped(retry.gave_up(error))
        await asyncio.sleep(retry.POLL_S)

    def _halt(self, message: str) -> None:
        self._closed = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ExecutionStopped(message))

    def _finish(self, lane: int) -> list[Task]:
        self._lane(lane).served += 1
        return self._release(lane)

    def _release(self, lane: int) -> list[Task]:
        """Take the lane's ended tasks from it, give back their leases, and return them. There are none if the lane got
        its tasks from a dispatcher that has died since."""
        state = self._lane(lane)
        tasks = state.tasks
        state.assign([])
        for task in tasks:
            self._release_lease(task)
        return tasks

    def _release_lease(self, task: Task) -> None:
        if self.leases:
            self.leases.release(task)

    def _answer(self, task: Task, result: int | Exception) -> None:
        answer = self._answers.get(task.ticket)
        if answer is None or answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)


def _activity(state: LaneState) -> LaneActivity:
    task = state.tasks[0]
    return LaneActivity(
        kind=task.kind,
        trials=[member.owner for member in state.tasks if member.owner],
        teacher=task.is_teacher,
        method=task.run.phase_after(task.begin - (task.kind == "probe")).term.kind,
        step=task.begin if state.step is None else state.step,
        steps_per_s=state.steps_per_s,
    )
