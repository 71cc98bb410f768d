"""Who trains what, when: trials ask for a run at a step, lanes ask for work, and nothing is given out twice.

Plain asyncio, no Ray: `launch.py` puts it into an actor. A trial that asks for what is published gets it at once; for
what is under way it waits, holding nothing; the rest is cut at the milestones and queued for the lanes, teachers first.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep import history
from raysweep.store import Store
from trainables.spec import ProbeSpec, Run, TeacherRef

ATTEMPTS = 3  # at one stretch, when workers die under it or what it builds on turns out damaged


class StretchFailed(Exception):
    """A stretch or a probe cannot be had; the message is for people."""


@dataclass(order=True)
class Assignment:
    """A piece of work for one lane: train `run` from `begin` to `end`, or probe it at `end`."""

    priority: tuple[int, int]
    ticket: int
    kind: Literal["train", "probe"] = field(compare=False)
    run: Run = field(compare=False)
    begin: int = field(compare=False)
    end: int = field(compare=False)
    probe: ProbeSpec | None = field(default=None, compare=False)
    owner: int | None = field(default=None, compare=False)  # the trial that asked first
    attempts: int = field(default=0, compare=False)

    @property
    def is_teacher(self) -> bool:
        """Whether it is trained for others to look up to rather than as a trial's own run."""
        return self.priority[0] == 0


class Dispatcher:
    """The state of one sweep's computing. All methods run on one event loop."""

    def __init__(self, storage: str, milestones: Sequence[int], lanes: int):
        self.store = Store(storage)
        self.milestones = list(milestones)
        self.lanes: dict[int, Assignment | None] = {lane: None for lane in range(lanes)}
        self.computed_steps = 0
        self.notes: list[str] = []
        self._closed = False
        self._tickets = itertools.count()
        self._queue: asyncio.PriorityQueue[Assignment] = asyncio.PriorityQueue()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._progress: dict[int, tuple[int, float]] = {}  # lane -> (step, steps/s)

    # --- for trials

    async def reach(self, run: Run, step: int, trial: int | None, teaches: bool = False) -> None:
        """Return when `run`'s checkpoint at `step` is published.

        Raises:
            StretchFailed: it cannot be: its loss is not finite, or its workers died too often.
        """
        key = history.key(run, step)
        if key not in self._under_way:
            self._start(key, self._make(run, step, trial, teaches))
        await asyncio.shield(self._under_way[key])

    async def probe(self, run: Run, step: int, spec: ProbeSpec, trial: int | None) -> dict[str, Any]:
        """The record of that probe of `run`'s checkpoint at `step`, which has been reached.

        Raises:
            StretchFailed: the probe's workers died too often, or what it looks at was damaged each time.
        """
        key = probe_key(run, step, spec)
        for _ in range(ATTEMPTS + 1):
            if record := self.store.record("probes", key):
                return record
            if key not in self._under_way:
                self._start(key, self._work("probe", run, step, step, trial, False, spec))
            try:
                await asyncio.shield(self._under_way[key])
            except _Again:
                await self.reach(run, step, trial)
        raise StretchFailed(f"the checkpoint at step {step} was found damaged {ATTEMPTS} times: check the storage")

    # --- for lanes

    async def join(self, lane: int) -> None:
        """A lane's workers have started. What its earlier workers left unfinished is queued again, a few times."""
        left, self.lanes[lane] = self.lanes[lane], None
        if left is None:
            return
        if left.attempts < ATTEMPTS:
            self.notes.append(f"workers of lane {lane} died; {_describe(left)} starts again")
            self._queue.put_nowait(left)
        else:
            self._answer(left, StretchFailed(f"workers died {left.attempts} times during {_describe(left)}"))

    async def next(self, lane: int, patience_s: float) -> Assignment | Literal["wait", "stop"]:
        """The lane's next piece of work, or `wait` when there was none for that long, or `stop`."""
        if self._closed:
            return "stop"
        try:
            assignment = await asyncio.wait_for(self._queue.get(), patience_s)
        except TimeoutError:
            return "stop" if self._closed else "wait"
        assignment.attempts += 1
        self.lanes[lane] = assignment
        return assignment

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
        self._answer(self._release(lane), StretchFailed(message))

    async def damaged(self, lane: int, message: str) -> None:
        """What the lane's assignment builds on turned out damaged; whoever asked for it asks again."""
        self.notes.append(message)
        self._answer(self._release(lane), _Again(message))

    async def lane_lost(self, lane: int, message: str) -> None:
        """A lane is gone for good. With the last one, all that waits fails."""
        left = self.lanes.pop(lane, None)
        if left:
            self._queue.put_nowait(left)
        self.notes.append(f"lane {lane} ended: {message}")
        if not self.lanes:
            self._closed = True
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(StretchFailed(f"no lane is left: {message}"))

    async def close(self) -> None:
        """No more work: lanes stop at their next question."""
        self._closed = True

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
        return {"lanes": working, "computed_steps": self.computed_steps, "notes": list(self.notes)}

    # --- inside

    def _start(self, key: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way[key] = task
        task.add_done_callback(lambda ended: (self._under_way.pop(key, None), ended.exception()))

    async def _make(self, run: Run, step: int, trial: int | None, teaches: bool) -> None:
        for _ in range(ATTEMPTS + 1):
            # Another study may have published where this one has no milestone.
            deepest = found.step if (found := self.store.deepest(run, step)) else 0
            if deepest == step:
                return
            begin = max((milestone for milestone in self.milestones if milestone < step), default=0)
            begin = max(begin, deepest)
            try:
                needs = [self.reach(run, begin, trial, teaches)] if begin else []
                if teacher := self._teacher(run, begin):
                    needs.append(self.reach(teacher.run, teacher.step, trial, teaches=True))
                await asyncio.gather(*needs)
                await self._work("train", run, begin, step, trial, teaches)
            except _Again:
                continue
            if self.store.find(run, step) is None:
                raise StretchFailed(f"step {step} was published but is not in {self.store.uri}: do all nodes see it?")
        raise StretchFailed(f"what leads to step {step} was found damaged {ATTEMPTS} times: check the storage")

    @staticmethod
    def _teacher(run: Run, begin: int) -> TeacherRef | None:
        return run.phase_after(begin).teacher

    async def _work(
        self,
        kind: Literal["train", "probe"],
        run: Run,
        begin: int,
        end: int,
        trial: int | None,
        teaches: bool,
        probe: ProbeSpec | None = None,
    ) -> Any:
        # Teachers open work for others; then probes, which let a trial decide; then whoever is least far.
        rank = 0 if teaches else 1 if kind == "probe" else 2
        assignment = Assignment((rank, end), next(self._tickets), kind, run, begin, end, probe, trial)
        self._answers[assignment.ticket] = asyncio.get_running_loop().create_future()
        if not self.lanes:
            raise StretchFailed("no lane is left")
        self._queue.put_nowait(assignment)
        try:
            return await self._answers[assignment.ticket]
        finally:
            del self._answers[assignment.ticket]

    def _release(self, lane: int) -> Assignment:
        assignment, self.lanes[lane] = self.lanes[lane], None
        self._progress.pop(lane, None)
        if assignment is None:
            raise RuntimeError(f"lane {lane} answered without an assignment")
        return assignment

    def _answer(self, assignment: Assignment, result: Any) -> None:
        answer = self._answers.get(assignment.ticket)
        if answer is None or answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)


class _Again(Exception):
    """Ask once more: what was there is not there any more."""


def probe_key(run: Run, step: int, spec: ProbeSpec) -> str:
    """The name of a probe's record: what was probed, and how."""
    return history.key_of({"checkpoint": history.key(run, step), "probe": spec.model_dump(mode="json")})


def _describe(assignment: Assignment) -> str:
    whose = "a teacher" if assignment.is_teacher else f"trial {assignment.owner}"
    if assignment.kind == "probe":
        return f"the probe of {whose} at step {assignment.end}"
    return f"{whose} from step {assignment.begin} to {assignment.end}"
