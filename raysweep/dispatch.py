"""Who trains what, when: trials ask for a run at a step, lanes ask for work, and nothing is given out twice.

Plain asyncio, no Ray: `launch.py` puts it into an actor. A trial that asks for what is published gets it at once; for
what is under way, here or under another driver's lease, it waits, holding nothing; the rest is cut at the milestones
and queued for the lanes, in the order of `Dispatcher._rank`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from raysweep import history
from raysweep.leases import Lease, Leases
from raysweep.store import Found
from trainables.spec import ProbeSpec, Run, TeacherRef

ATTEMPTS = 3  # at one stretch, when workers die under it or what it builds on turns out damaged
PASSED_OVER = 16  # times per lane that work may be passed over before it goes first whatever its rank
POLL_S = 1.0  # between looks at another driver's lease

Kind = Literal["train", "probe", "replay"]


class StretchFailed(Exception):
    """A stretch or a probe cannot be had; the message is for people."""


class Shelf(Protocol):
    """What is asked of a store."""

    uri: str

    def find(self, run: Run, step: int) -> Found | None: ...
    def deepest(self, run: Run, step: int) -> Found | None: ...
    def record(self, kind: str, key: str) -> dict[str, Any] | None: ...


@dataclass
class Want:
    """Why a piece of work matters: how many wait for it, and the longest way that the run behind them still has."""

    waiters: int = 0
    ahead: int = 0  # steps
    teaches: bool = False


@dataclass
class Assignment:
    """A piece of work for one lane: train `run` from `begin` to `end`, probe it at `end`, or train it a second time."""

    ticket: int
    kind: Kind
    run: Run
    begin: int
    end: int
    want: Want
    probe: ProbeSpec | None = None
    owner: str | None = None  # the trial that asked first
    is_teacher: bool = False  # trained for others to look up to rather than as a trial's own run
    attempts: int = 0
    passed_over: int = 0

    @property
    def lease(self) -> str:
        """The name of the lease on it: of training, that on the next step, whoever stops where."""
        if self.kind == "train":
            return history.key(self.run, self.begin + 1)
        name = history.key(self.run, self.end) if self.probe is None else probe_key(self.run, self.end, self.probe)
        return f"{self.kind}-{name}"

    def overlaps(self, lease: Lease) -> bool:
        """Whether another driver's lease is on a stretch that has steps of this one."""
        if self.kind != "train" or lease.facts.get("kind") != "train":
            return False
        begin = max(self.begin, lease.facts["begin"])
        if begin >= min(self.end, lease.facts["end"]):
            return False
        try:
            return history.key(Run.model_validate_json(lease.facts["run"]), begin + 1) == history.key(
                self.run, begin + 1
            )
        except (LookupError, ValueError):  # of a data set or an encoder that this machine lacks, or another version's
            return False


class Dispatcher:
    """The state of one driver's computing. All methods run on one event loop.

    Args:
        store: where checkpoints are found.
        milestones: steps at which all runs publish.
        lanes: how many there are.
        leases: how drivers that share the store keep out of each other's way; None where there is only this one.
    """

    def __init__(self, store: Shelf, milestones: Sequence[int], lanes: int, leases: Leases | None = None):
        self.store, self.leases = store, leases
        self.milestones = list(milestones)
        self.lanes: dict[int, Assignment | None] = {lane: None for lane in range(lanes)}
        self.computed_steps = 0
        self.notes: list[str] = []
        self._closed = False
        self._tickets = itertools.count()
        self._ready: list[Assignment] = []
        self._arrived = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._wants: dict[str, Want] = {}
        self._elsewhere: dict[int, str] = {}  # ticket -> who has it
        self._watching: set[asyncio.Task[None]] = set()
        self._progress: dict[int, tuple[int, float]] = {}  # lane -> (step, steps/s)

    # --- for trials

    async def reach(
        self, run: Run, step: int, trial: str | None, teaches: bool = False, ahead: int | None = None
    ) -> None:
        """Return when `run`'s checkpoint at `step` is published.

        Args:
            trial: who asks.
            teaches: whether it is wanted as a teacher.
            ahead: steps that whoever asks has before it after this; by default those to the run's end.

        Raises:
            StretchFailed: it cannot be: its loss is not finite, or its workers died too often.
        """
        key = history.key(run, step)
        want = self._wants.setdefault(key, Want())
        want.waiters += 1
        want.ahead = max(want.ahead, run.steps - step if ahead is None else ahead)
        want.teaches |= teaches
        if key not in self._under_way:
            self._start(key, self._make(run, step, trial, want))
        try:
            await asyncio.shield(self._under_way[key])
        finally:
            want.waiters -= 1
            if not want.waiters:
                self._wants.pop(key, None)

    async def probe(self, run: Run, step: int, spec: ProbeSpec, trial: str | None) -> dict[str, Any]:
        """The record of that probe of `run`'s checkpoint at `step`, which has been reached.

        Raises:
            StretchFailed: the probe's workers died too often, or what it looks at was damaged each time.
        """
        key = probe_key(run, step, spec)
        damaged = 0
        while damaged <= ATTEMPTS:
            if record := self.store.record("probes", key):
                return record
            if key not in self._under_way:
                want = Want(waiters=1, ahead=run.steps - step)
                self._start(key, self._work("probe", run, step, step, trial, want, spec))
            try:
                await asyncio.shield(self._under_way[key])
            except _Elsewhere:
                continue
            except _Again:
                damaged += 1
                await self.reach(run, step, trial)
        raise StretchFailed(f"the checkpoint at step {step} was found damaged {ATTEMPTS} times: check the storage")

    async def replay(self, run: Run, step: int) -> dict[str, Any] | None:
        """The certificate of `run`'s checkpoint at `step`: whether training through the checkpoint that it came from,
        without a stop there, yields its very bits. None where that cannot be tried: what it came from is gone.

        Raises:
            StretchFailed: the training failed.
        """
        key = history.key(run, step)
        while True:
            if certificate := self.store.record("certificates", key):
                return certificate
            found = self.store.find(run, step)
            if found is None:
                return None
            begin = found.manifest["from_step"]
            if begin:
                parent = self.store.find(run, begin)
                begin = parent.manifest["from_step"] if parent else -1
            if begin < 0 or (begin and self.store.find(run, begin) is None):
                return None
            if f"replay-{key}" not in self._under_way:
                self._start(f"replay-{key}", self._work("replay", run, begin, step, None, Want()))
            try:
                await asyncio.shield(self._under_way[f"replay-{key}"])
            except _Elsewhere:
                continue
            except _Again:
                return None

    # --- for lanes

    async def join(self, lane: int) -> None:
        """A lane's workers have started. What its earlier workers left unfinished is queued again, a few times."""
        left, self.lanes[lane] = self.lanes[lane], None
        if left is None:
            return
        if left.attempts < ATTEMPTS:
            self.notes.append(f"workers of lane {lane} died; {_describe(left)} starts again")
            self._queue(left)
        else:
            if self.leases:
                self.leases.release(left.lease)
            self._answer(left, StretchFailed(f"workers died {left.attempts} times during {_describe(left)}"))

    async def next(self, lane: int, patience_s: float) -> Assignment | Literal["wait", "stop"]:
        """The lane's next piece of work, or `wait` when there was none for that long, or `stop`."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience_s
        while not self._closed:
            assignment = self._pick()
            if assignment is None:
                try:
                    await asyncio.wait_for(self._arrived.wait(), until - clock())
                except TimeoutError:
                    break
                continue
            try:
                claimed = await self._claim(assignment)
            except BaseException as error:
                self._queue(assignment)
                if not isinstance(error, OSError):
                    raise
                self._note(f"the storage does not answer, trying again: {error}")
                await asyncio.sleep(POLL_S)
                continue
            if claimed:
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
        self._answer(self._release(lane), StretchFailed(message))

    async def damaged(self, lane: int, message: str) -> None:
        """What the lane's assignment builds on turned out damaged; whoever asked for it asks again."""
        self.notes.append(message)
        self._answer(self._release(lane), _Again(message))

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
                    answer.set_exception(StretchFailed(f"no lane is left: {message}"))

    async def close(self) -> None:
        """No more work: lanes stop at their next question."""
        self._closed = True
        self._arrived.set()
        if self.leases:
            await asyncio.to_thread(self.leases.close)

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
            "elsewhere": sorted(self._elsewhere.values()),
            "notes": list(self.notes),
        }

    # --- inside

    def _start(self, key: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way[key] = task

        def over(ended: asyncio.Task[Any]) -> None:
            self._under_way.pop(key, None)
            if not ended.cancelled():
                ended.exception()  # was looked at: whoever waited for it has it too

        task.add_done_callback(over)

    async def _make(self, run: Run, step: int, trial: str | None, want: Want) -> None:
        damaged = 0
        while damaged <= ATTEMPTS:
            # Another study may have published where this one has no milestone.
            deepest = found.step if (found := self.store.deepest(run, step)) else 0
            if deepest == step:
                return
            begin = max((milestone for milestone in self.milestones if milestone < step), default=0)
            begin = max(begin, deepest)
            try:
                ahead = step - begin + want.ahead
                needs = [self.reach(run, begin, trial, want.teaches, ahead)] if begin else []
                if teacher := self._teacher(run, begin):
                    needs.append(self.reach(teacher.run, teacher.step, trial, True, ahead))
                await asyncio.gather(*needs)
                await self._work("train", run, begin, step, trial, want)
            except _Elsewhere:
                continue
            except _Again:
                damaged += 1
                continue
            if self.store.find(run, step) is None:
                raise StretchFailed(f"step {step} was published but is not in {self.store.uri}: do all nodes see it?")
        raise StretchFailed(f"what leads to step {step} was found damaged {ATTEMPTS} times: check the storage")

    @staticmethod
    def _teacher(run: Run, begin: int) -> TeacherRef | None:
        return run.phase_after(begin).teacher

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
            raise StretchFailed("no lane is left")
        self._queue(assignment)
        try:
            return await self._answers[assignment.ticket]
        finally:
            del self._answers[assignment.ticket]

    # --- which piece of work next

    def _queue(self, assignment: Assignment) -> None:
        self._ready.append(assignment)
        self._arrived.set()

    def _pick(self) -> Assignment | None:
        if not self._ready:
            self._arrived.clear()
            return None
        chosen = min(self._ready, key=self._rank)
        self._ready.remove(chosen)
        for other in self._ready:
            other.passed_over += 1
        return chosen

    def _rank(self, assignment: Assignment) -> tuple[bool, int, int, int]:
        """What several wait for opens work; a probe lets a trial decide; then whoever has the longest way before it, as
        the last of those ends the sweep. Nothing is passed over for ever.
        """
        want = assignment.want
        opens = want.teaches or want.waiters > 1
        kind = 0 if opens else {"probe": 1, "train": 2, "replay": 3}[assignment.kind]
        way = assignment.end - assignment.begin + want.ahead
        waited = assignment.passed_over >= PASSED_OVER * max(1, len(self.lanes))
        return (not waited, kind, -way, assignment.ticket)

    async def _claim(self, assignment: Assignment) -> bool:
        """Take the lease on a piece of work; where another driver has it, or has done it, see to it that it is asked
        for again in time."""
        if self.leases is None:
            return True
        taken, holder = await asyncio.to_thread(self._try, self.leases, assignment)
        if taken:
            return True
        if holder:
            told = f"{_describe(assignment)}: by {holder.holder}"
            self._elsewhere[assignment.ticket] = told
        watching = asyncio.get_running_loop().create_task(self._watch(self.leases, assignment))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return False

    def _try(self, leases: Leases, assignment: Assignment) -> tuple[bool, Lease | None]:
        if holder := self._holder(leases, assignment):
            return False, holder
        facts = {"kind": assignment.kind, "begin": assignment.begin, "end": assignment.end}
        if not leases.acquire(assignment.lease, facts | {"run": assignment.run.model_dump_json()}):
            return False, leases.holder(assignment.lease)
        # Its last holder may have finished it a moment ago.
        if assignment.kind == "train" and (found := self.store.deepest(assignment.run, assignment.end)):
            if found.step > assignment.begin:
                leases.release(assignment.lease)
                return False, None
        return True, None

    def _holder(self, leases: Leases, assignment: Assignment) -> Lease | None:
        own = assignment.lease
        for lease in leases.others():
            if lease.name == own or assignment.overlaps(lease):
                return lease
        return None

    async def _watch(self, leases: Leases, assignment: Assignment) -> None:
        held = True
        while held:
            try:
                held = await asyncio.to_thread(self._holder, leases, assignment) is not None
            except OSError as error:
                self._note(f"the storage does not answer, trying again: {error}")
            if held:
                await asyncio.sleep(POLL_S)
        self._elsewhere.pop(assignment.ticket, None)
        self._answer(assignment, _Elsewhere())

    def _note(self, told: str) -> None:
        if told not in self.notes:
            self.notes.append(told)

    # --- answers

    def _release(self, lane: int) -> Assignment:
        assignment, self.lanes[lane] = self.lanes[lane], None
        self._progress.pop(lane, None)
        if assignment is None:
            raise RuntimeError(f"lane {lane} answered without an assignment")
        if self.leases:
            self.leases.release(assignment.lease)
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


class _Elsewhere(Exception):
    """Ask once more: another driver was at it, and is not any more."""


def probe_key(run: Run, step: int, spec: ProbeSpec) -> str:
    """The name of a probe's record: what was probed, and how."""
    return history.key_of({"checkpoint": history.key(run, step), "probe": spec.model_dump(mode="json")})


def _describe(assignment: Assignment) -> str:
    whose = "a teacher" if assignment.is_teacher else f"trial {assignment.owner}"
    if assignment.kind == "probe":
        return f"the probe of {whose} at step {assignment.end}"
    if assignment.kind == "replay":
        return f"the replay of steps {assignment.begin} to {assignment.end}"
    return f"{whose} from step {assignment.begin} to {assignment.end}"
