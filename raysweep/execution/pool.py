"""The pool: the lanes of one driver, the tasks that are ready, and which lane works on which task.

A task is *under way* from the moment at which it leaves the queue for a lane until the lane has finished it. Two tasks
that are under way never train the same steps. Nothing here waits for the storage while a lane or a trial waits for an
answer: leases are taken and given back in the background.

A lane is a group of workers that train together (Ray Train's worker group). The module uses plain asyncio and no Ray:
`actor.py` puts the pool into an actor.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from raysweep import retry
from raysweep.execution.memory import Memory
from raysweep.execution.queue import Queue
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import (
    Demand,
    ExecutionStopped,
    InputDamaged,
    RetriesExhausted,
    Tally,
    Task,
    TaskFailed,
    TaskOutdated,
    describe,
)
from raysweep.space.milestones import Milestones
from raysweep.store import history
from raysweep.study.activity import Activity, LaneActivity
from trainables.config import Run

GATHER_S = 0.3  # how long a lane waits for other tasks that could join its cohort
ATTEMPTS = 5  # at one task, if its workers die or its inputs are damaged
CLOSE_S = 10.0  # how long a pool that ends waits for leases that are being taken or given back

Result = TypeVar("Result")
Given = list[Task] | Literal["wait", "stop"]


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
        workers: identifies its worker processes; empty until they have told how much they have trained.
        answer: what its latest call of `next` waits for. An earlier call never gets tasks.
        claiming: whether leases are being taken on tasks for it.
    """

    tasks: list[Task] = field(default_factory=list)
    step: int | None = None
    steps_per_s: float = 0.0
    served: int = 0
    placement_group: str | None = None
    last_message: float | None = None
    out_of_memory: bool = False
    workers: str = ""
    answer: asyncio.Future[Given] | None = None
    claiming: bool = False

    @property
    def waits(self) -> bool:
        """Whether a call of `next` waits for tasks."""
        return self.answer is not None and not self.answer.done()

    def dismiss(self, answer: Literal["wait", "stop"]) -> None:
        """Answer the call of `next` that waits, if there is one, without tasks."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

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
        trained: optimizer steps that were trained, by the worker processes that trained them.
    """

    activity: Activity = field(default_factory=Activity)
    groups: dict[int, str] = field(default_factory=dict)
    served: dict[int, int] = field(default_factory=dict)
    silent_s: dict[int, float] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)


class Pool:
    """The lanes of one driver, their tasks, and the tasks that are ready. All methods run on one event loop.

    Args:
        lanes: how many there are.
        leases: divides tasks among the drivers that share a store; None where there is only this driver.
        workers: the fewest workers of a lane.
        micro_batch: images that a worker puts through the network at once; None: its whole share of the batch.
        cohort: the most students of one teacher that a lane trains in lockstep.

    Attributes:
        milestones: where this driver's runs are cut. A task with a milestone inside its segment is not given out: its
            callers get a `TaskOutdated` and ask for its parts.
        trained: optimizer steps that were trained, by the worker processes that trained them.
    """

    def __init__(
        self, lanes: int, leases: TaskLeases | None, workers: int = 1, micro_batch: int | None = None, cohort: int = 1
    ):
        self.lanes = {lane: LaneState() for lane in range(lanes)}
        self.leases = leases
        self.milestones = Milestones(history.trunk)
        self.trained: dict[str, int] = {}
        self.notes: list[str] = []
        self._ready = Queue()
        self._under_way: dict[int, Task] = {}  # by ticket
        self._blocked: dict[int, list[Task]] = {}  # ticket of a task under way -> tasks that share steps with it
        self._committed: dict[tuple[str, int], int] = {}  # (trunk, step) -> the mark of its commit
        self._answers: dict[int, asyncio.Future[int | None]] = {}  # by ticket
        self._marks = itertools.count()
        self._watching: set[asyncio.Task[None]] = set()  # waits for other drivers' leases
        self._lease_calls: set[asyncio.Task[None]] = set()  # leases that are being taken or given back
        self._memory = Memory(workers, micro_batch)
        self._cohort = cohort
        self._outage = retry.StorageOutage(self.add_note, remind_s=0)
        self._stopping = False
        self._closed = False

    @property
    def computed_steps(self) -> int:
        """Optimizer steps that the lanes have trained so far."""
        return sum(self.trained.values())

    # --- for the dispatcher

    async def submit(self, task: Task) -> int | None:
        """Queue a task and wait until a lane has finished it. Returns the step that was reached: less than `task.end`
        when the lane was asked to stop.

        Raises:
            TaskFailed: the task cannot be done, and repeating it would not help.
            RetriesExhausted: a TaskFailed; the workers died too often.
            ExecutionStopped: no lane is left, or the storage is unusable.
            InputDamaged: an input of the task is damaged: have it computed again, then submit the task again.
            TaskOutdated: look at the store again, and submit what is still to be done.
        """
        task.ticket = self.mark()
        answer = self._answers[task.ticket] = asyncio.get_running_loop().create_future()
        try:
            if self._closed:
                raise ExecutionStopped("no lane is left")
            self._queue(task)
            return await answer
        finally:
            del self._answers[task.ticket]

    def mark(self) -> int:
        """A number larger than that of everything that has happened so far."""
        return next(self._marks)

    def cuts(self, run: Run, begin: int, end: int) -> list[int]:
        """The steps after `begin` and before `end` at which `run` is cut, ascending: the milestones of this driver, and
        those of other drivers, as they were when their leases were last read."""
        elsewhere = self.leases.milestones if self.leases else ()
        return sorted({*self.milestones.between(run, begin, end), *(step for step in elsewhere if begin < step < end)})

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
        again, and an earlier call of `next` gets none."""
        state = self._lane(lane)
        self._record_message(lane)
        state.dismiss("wait")
        if placement_group:
            state.placement_group = placement_group
        unfinished, out_of_memory = state.tasks, state.out_of_memory
        state.assign([])
        if unfinished and unfinished[0].attempts < ATTEMPTS and not out_of_memory:
            self.notes.append(f"workers of lane {lane} died; {describe(unfinished)} starts again")
        for task in unfinished:
            if task.attempts < ATTEMPTS:
                task.solo |= task.attempts > 1  # the cohort may need too much memory
                self._requeue(task)
            else:
                self._leave(task)
                self._answer(task, RetriesExhausted(f"workers died {task.attempts} times during {task}"))

    async def note(self, lane: int, message: str) -> None:
        """Add a lane's message for the user."""
        self._record_message(lane)
        self.add_note(f"lane {lane}: {message}")

    async def next(self, lane: int, timeout_s: float, tally: Tally | None = None) -> Given:
        """The lane's next task, or a cohort to be trained in lockstep; `wait` if there was none within `timeout_s`
        seconds, whatever the storage does; `stop` if no more tasks will be given out.

        A lane asks for tasks when it has none. Tasks that an earlier call was given did not arrive, so they are queued
        again, and an earlier call that still waits gets none.

        Args:
            tally: what the lane's workers have trained, for a pool that has not seen them train it.
        """
        state = self._lane(lane)
        self._record_message(lane)
        if tally:
            state.workers = tally.workers
            self.trained[tally.workers] = max(tally.steps, self.trained.get(tally.workers, 0))
        state.dismiss("wait")
        self._take_back(state)
        if self._ended:
            return "stop"
        answer: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        state.answer = answer
        self._match()
        try:
            await asyncio.wait({answer}, timeout=timeout_s)
        except asyncio.CancelledError:
            if answer.done() and answer.result() is state.tasks:
                self._take_back(state)
            raise
        finally:
            if state.answer is answer:
                state.answer = None
        return answer.result() if answer.done() else "wait"

    async def progress(self, lane: int, step: int, steps_per_s: float) -> int | None:
        """Record how far the lane has come. Returns the step at which it should commit its checkpoints and stop: a step
        that some run needs since the lane began, or 0 for at once. None: at the end of its tasks."""
        self._record_message(lane)
        if self._stopping:
            return 0
        if (state := self.lanes.get(lane)) is None:
            return None
        state.step, state.steps_per_s = step, steps_per_s
        training = [task for task in state.tasks if task.kind == "train"]
        return min((cut for task in training for cut in self.cuts(task.run, step, task.end)), default=None)

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
                workers = self._lane(lane).workers or f"lane {lane}"
                self.trained[workers] = self.trained.get(workers, 0) + step - task.begin
                self._committed[task.trunk, step] = self.mark()
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
            state.dismiss("stop")
            for task in state.tasks:
                self._requeue(task)
        self.add_note(f"lane {lane} ended: {message}")
        if not self.lanes:
            self._halt(f"no lane is left: {message}")

    async def stop(self) -> None:
        """Give out no more tasks. The lanes that train save a checkpoint and stop."""
        self._stopping = True
        self._dismiss_all()

    async def close(self) -> None:
        """Give out no more tasks. The lanes stop when they ask for the next one."""
        self._closed = True
        self._dismiss_all()
        if self.leases:
            if self._lease_calls:  # otherwise a lease could be taken after all have been given back
                await asyncio.wait(self._lease_calls, timeout=CLOSE_S)
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
            dict(self.trained),
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

    def _dismiss_all(self) -> None:
        for state in self.lanes.values():
            state.dismiss("stop")

    def _queue(self, task: Task) -> None:
        self._ready.push(task)
        self._match()

    def _requeue(self, task: Task) -> None:
        """Queue a task again that is under way."""
        self._leave(task)
        self._queue(task)

    def _take_back(self, state: LaneState) -> None:
        """Queue again the tasks that a lane was given and has not received."""
        tasks = state.tasks
        state.assign([])
        for task in tasks:
            task.attempts -= 1
            self._requeue(task)

    def _match(self) -> None:
        """Take ready tasks from the queue, one for each lane that waits."""
        for lane, state in self.lanes.items():
            if state.waits and not state.claiming and not self._ended:
                if (task := self._pop()) is None:
                    return
                state.claiming = True
                self._in_background(self._claim(lane, state, task))

    def _pop(self) -> Task | None:
        """The first task of the queue that can begin; it is under way from now on."""
        while task := self._ready.pop(len(self.lanes)):
            if self._begin(task):
                return task
        return None

    def _begin(self, task: Task) -> bool:
        """Set a task that has left the queue under way. False if it cannot begin: its callers ask again, at once where
        it is outdated, or once the task under way that trains some of its steps has ended."""
        if self._is_outdated(task):
            self._answer(task, TaskOutdated())
            return False
        for other in self._under_way.values():
            if task.shares_steps(other):
                self._blocked.setdefault(other.ticket, []).append(task)
                return False
        self._under_way[task.ticket] = task
        return True

    def _leave(self, task: Task) -> None:
        """End a task's being under way: give back its lease, and have the callers of tasks that wait for it ask
        again."""
        del self._under_way[task.ticket]
        if self.leases:
            self._in_background(self.leases.release(task))
        for blocked in self._blocked.pop(task.ticket, []):
            self._answer(blocked, TaskOutdated())

    def _is_outdated(self, task: Task) -> bool:
        """Whether a checkpoint is needed inside a task's segment, or the one at its end has been committed since its
        callers looked into the store."""
        if task.kind != "train":
            return False
        committed = self._committed.get((task.trunk, task.end), -1) > task.looked
        return committed or bool(self.cuts(task.run, task.begin, task.end))

    async def _claim(self, lane: int, state: LaneState, task: Task) -> None:
        """Take the leases on a task that is under way and on the members of its cohort, and give them to the lane. If
        the lane no longer waits, they are queued again."""
        tasks = await self._take_leases([task])
        if tasks:
            tasks += await self._take_leases(await self._members(lane, task))
        state.claiming = False
        for outdated in [task for task in tasks if self._is_outdated(task)]:  # since it left the queue
            tasks.remove(outdated)
            self._leave(outdated)
            self._answer(outdated, TaskOutdated())
        if tasks and state.answer is not None and state.waits:
            for member in tasks:
                member.attempts += 1
                member.micro_batch = self._memory.micro_batch(member)
            state.assign(tasks)
            state.answer.set_result(tasks)
        else:
            for unwanted in tasks:
                self._requeue(unwanted)
        self._match()

    async def _members(self, lane: int, task: Task) -> list[Task]:
        """The other members of a cohort with `task`. Students of one teacher become ready one after another, so this
        waits a moment for them."""
        if self._cohort == 1 or not task.cohort_key:
            return []
        await asyncio.sleep(GATHER_S)
        idle = sum(other == lane or not state.tasks for other, state in self.lanes.items())
        matching = self._ready.pop_members(task, self._cohort - 1, idle)
        return [member for member in matching if self._begin(member)]

    async def _take_leases(self, tasks: Iterable[Task]) -> list[Task]:
        """Take the leases on tasks that are under way. Returns those whose lease was taken; the others are no longer
        under way."""
        tasks = list(tasks)
        taken = await asyncio.gather(*map(self._take_lease, tasks))
        return [task for task, mine in zip(tasks, taken, strict=True) if mine]

    async def _take_lease(self, task: Task) -> bool:
        """Take the lease on a task. If another driver has it, the callers that wait for the task ask again once the
        lease is free."""
        if self.leases is None:
            return True
        try:
            if await self.retry_storage(partial(self.leases.take, task)):
                return True
        except Exception as error:  # TaskOutdated, or what nobody expects: the callers must be told
            self._leave(task)
            self._answer(task, error)
            return False
        self._leave(task)
        self._keep(self._watching, self._watch(self.leases, task))
        return False

    async def _watch(self, leases: TaskLeases, task: Task) -> None:
        await self.retry_storage(partial(leases.free, task))
        self._answer(task, TaskOutdated())

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
        self._dismiss_all()

    def _in_background(self, lease_call: Coroutine[Any, Any, None]) -> None:
        self._keep(self._lease_calls, lease_call)

    def _keep(self, running: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        """Start `work`, and keep it in a set while it runs: the event loop holds no reference."""
        task = asyncio.get_running_loop().create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)

    def _finish(self, lane: int) -> list[Task]:
        self._lane(lane).served += 1
        return self._release(lane)

    def _release(self, lane: int) -> list[Task]:
        """Take the lane's ended tasks from it and return them. There are none if the lane got its tasks from a
        dispatcher that has died since."""
        state = self._lane(lane)
        tasks = state.tasks
        state.assign([])
        for task in tasks:
            self._leave(task)
        return tasks

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
