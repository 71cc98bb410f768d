"""A sweep on a virtual clock: the real study, dispatcher and scheduler, with learning curves in place of training.

Nothing is trained. A lane sleeps for as long as the training would take at the speed that `price` assumes, a probe's
result comes from a learning curve, and the clock jumps from one event to the next.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, TypeVarTuple

from obstore.store import MemoryStore as MemoryObjects

from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import Pool
from raysweep.execution.tasks import Task
from raysweep.planning import price
from raysweep.planning.learning_curves import Curve
from raysweep.space.configurations import Configuration
from raysweep.space.space import Space
from raysweep.store import history
from raysweep.store.files import Files
from raysweep.store.history import probe_key
from raysweep.store.manifest import Manifest, TrainingFacts
from raysweep.store.records import ProbeRecord, Record
from raysweep.store.store import RecordType, Store, StoredCheckpoint
from raysweep.study.ordering import EventOrder, RungTask
from raysweep.study.rungs import Difference, Recheck
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from trainables.config import ProbeSpec, Run
from trainables.datasets import catalog
from trainables.location import Location

TRIALS_PER_LANE = 4  # trials that may be under way, per lane
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")
IDLE_S = 1e9  # how long an idle lane waits for a task: for ever, on a virtual clock


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is ready, its clock jumps to the next timer. What would run in a
    thread runs at once, because a virtual clock cannot wait for threads."""

    def __init__(self) -> None:
        super().__init__(_Jump(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        done: asyncio.Future[Result] = self.create_future()
        done.set_result(func(*args))
        return done


class _Jump(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop):
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulation is stuck: no task is ready and no timer is set")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


class MemoryFiles(Files):
    """Files in this process's memory."""

    def __init__(self) -> None:
        self.uri, self.mark = "memory", None
        self.location, self._objects = Location("memory", "", ""), MemoryObjects()


class MemoryStore(Store):
    """A store in memory, whose checkpoints have no files."""

    def __init__(self) -> None:
        self.files = MemoryFiles()
        self.uri = self.files.uri
        self._checkpoints: dict[str, StoredCheckpoint] = {}
        self._depths: set[int] = set()
        self._records: dict[str, Record] = {}

    def add_checkpoint(self, run: Run, begin: int, end: int) -> None:
        """Add `run`'s checkpoint at step `end`, trained from step `begin`."""
        key = history.key(run, end)
        manifest = Manifest(key, end, {}, {}, TrainingFacts(from_step=begin))
        self._checkpoints[key] = StoredCheckpoint(key, end, manifest)
        self._depths.add(end)

    def find(self, run: Run, step: int) -> StoredCheckpoint | None:
        return self._checkpoints.get(history.key(run, step)) if step in self._depths else None

    def deepest(self, run: Run, step: int) -> StoredCheckpoint | None:
        for depth in sorted(self._depths, reverse=True):
            if depth <= step and (checkpoint := self.find(run, depth)):
                return checkpoint
        return None

    def record(self, kind: type[RecordType], key: str) -> RecordType | None:
        record = self._records.get(f"{kind.KIND}/{key}")
        return record if isinstance(record, kind) else None

    def put_record(self, key: str, record: Record, files: Mapping[str, Path] = MappingProxyType({})) -> None:
        self._records[f"{record.KIND}/{key}"] = record


@dataclass
class Outcome:
    """What a simulated sweep cost, and the best metric over time."""

    study: StudyState
    hours: float  # wall time until the last trial ended
    steps: int  # optimizer steps trained, teachers included
    training_gpu_hours: float
    probe_gpu_hours: float
    best: list[tuple[float, float]]  # (hours, metric): each time a better complete trial became known

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of training and probes."""
        return self.training_gpu_hours + self.probe_gpu_hours

    @property
    def complete(self) -> list[TrialState]:
        """The trials that were trained to their end."""
        return [trial for trial in self.study.distinct if trial.state == "COMPLETE"]


def simulate(
    space: Space,
    configurations: Sequence[Configuration],
    curve: Curve,
    lanes: int,
    gpus_per_lane: int = 8,
    sharing: bool = True,
) -> Outcome:
    """Simulate a sweep of `space` on `lanes` lanes that proposes `configurations` in their order.

    Args:
        curve: the metrics that probes measure.
        gpus_per_lane: GPUs of one lane; training is assumed to speed up linearly with them.
        sharing: whether trials share segments. If not, each trial trains everything itself, its teacher included, as
            trial-based tuners do.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_Sweep(space, configurations, curve, lanes, gpus_per_lane, sharing).run())


class _Study(StudyState):
    """A study that compares trials by the function `compare`, because a simulation has no samples to compare."""

    compare: Callable[[TrialState, TrialState, int, Recheck | None], Difference]

    def difference(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        return self.compare(trial, rival, step, recheck)


class _Sweep:
    def __init__(
        self,
        space: Space,
        configurations: Sequence[Configuration],
        curve: Curve,
        lanes: int,
        gpus: int,
        sharing: bool,
    ):
        self.store = MemoryStore()
        self.study = _Study(space, self.store)
        self.study.compare = self._compare
        self.pool = Pool(lanes, leases=None)
        self.dispatcher = Dispatcher(self.store, self.study.milestones, self.pool)
        self.pending, self.curve, self.gpus, self.sharing = list(reversed(configurations)), curve, gpus, sharing
        self.chosen: dict[int, Configuration] = {}
        self.order = EventOrder(self.study, self._propose, TRIALS_PER_LANE * lanes)
        self.lanes, self.training_s, self.probe_s = lanes, 0.0, 0.0
        self.best: list[tuple[float, float]] = []

    async def run(self) -> Outcome:
        clock = asyncio.get_running_loop().time
        lanes = [asyncio.create_task(self._lane(lane)) for lane in range(self.lanes)]
        rung_tasks: set[asyncio.Task[None]] = set()
        while not self.order.finished:
            while rung_task := self.order.next():
                rung_tasks.add(asyncio.create_task(self._run_rung_task(rung_task)))
            if rung_tasks:
                done, rung_tasks = await asyncio.wait(rung_tasks, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    finished.result()  # raises what the task raised
        hours = clock() / 3600
        await self.pool.close()
        await asyncio.gather(*lanes)
        training, probes = (seconds * self.gpus / 3600 for seconds in (self.training_s, self.probe_s))
        return Outcome(self.study, hours, self.pool.computed_steps, training, probes, self.best)

    def _propose(self) -> TrialState | None:
        while self.pending:
            chosen = self.pending.pop()
            trial = self.study.propose(chosen.point)
            if trial.repeats is None:
                self.chosen[trial.number] = chosen
                return trial
        return None

    async def _run_rung_task(self, rung_task: RungTask) -> None:
        for number in rung_task.trials:
            run = self.chosen[number].run if self.sharing else _unshared(self.chosen[number].run, number)
            rungs = self.study.rungs(self.study.trials[number])
            await self.dispatcher.reach(run, rung_task.step, str(number), rungs)
            await self.dispatcher.probe(run, rung_task.step, self._probe(number, rung_task.recheck), str(number))
        value = self.curve(self.chosen[rung_task.trial], rung_task.step)
        self.order.probed(rung_task, dict.fromkeys(self.study.space.probe.measured, value))
        best = self.study.best
        if best and (not self.best or best.last(self.study.metric) != self.best[-1][1]):
            self.best.append((asyncio.get_running_loop().time() / 3600, best.last(self.study.metric) or math.inf))

    def _compare(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        """The difference between two trials' probes. A recheck draws more samples, so its variance is smaller."""
        larger = self._probe(trial.number, recheck).samples // self._probe(trial.number, None).samples
        one, other = (self.curve(self.chosen[t.number], step, larger) for t in (trial, rival))
        return Difference(one - other, self.curve.noise * (2 / larger) ** 0.5)

    def _probe(self, number: int, recheck: Recheck | None) -> ProbeSpec:
        probe = self.chosen[number].probe
        return probe.model_copy(update={"samples": recheck.samples}) if recheck else probe

    async def _lane(self, lane: int) -> None:
        while (tasks := await self.pool.next(lane, IDLE_S)) != "stop":
            if tasks == "wait":
                raise RuntimeError("the simulation is stuck: trials wait, and no lane has a task")
            (task,) = tasks
            seconds = self._seconds(task)
            await asyncio.sleep(seconds)
            if task.kind == "train":
                self.training_s += seconds
                self.store.add_checkpoint(task.run, task.begin, task.end)
            elif task.probe:
                self.probe_s += seconds
                self.store.put_record(probe_key(task.run, task.end, task.probe), ProbeRecord({}))
            await self.pool.done(lane, None)

    def _seconds(self, task: Task) -> float:
        run = task.run
        if task.probe:
            return price.probe_gpu_s(run, task.probe) / self.gpus
        kind = run.phase_after(task.begin).term.kind
        return (task.end - task.begin) * price.step_gpu_s(run, kind) / self.gpus


def _unshared(run: Run, number: int) -> Run:
    """The same run with a history that no other trial shares: its seed and its teachers' are the trial's number."""
    phases = []
    for phase in run.phases:
        teacher = phase.teacher
        if teacher:
            teacher = teacher.model_copy(update={"run": _unshared(teacher.run, number)})
        phases.append(phase.model_copy(update={"teacher": teacher}))
    return run.model_copy(update={"seed": number, "phases": tuple(phases)})


def trust_names() -> None:
    """Make this process identify data and encoders by their names, so that their files need not be on this machine."""
    for name in (*catalog.DATASETS, "dinov2", "effnet_lite0"):
        catalog.TRUSTED[name] = f"simulated {name}"
