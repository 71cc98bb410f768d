"""A sweep on a virtual clock: the study, the dispatcher and the scheduler that a real one has, over learning curves.

Nothing is trained. A lane sleeps for as long as the training would take at the speed that `price` assumes, and what a
probe would say comes from a curve; the clock jumps from one event to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.tasks import Task
from raysweep.planning import price
from raysweep.planning.learning_curves import Curve
from raysweep.space.configurations import Configuration
from raysweep.space.space import Space
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.store import Store, StoredCheckpoint
from raysweep.study.ordering import EventOrder, RungTask
from raysweep.study.rungs import Difference, Recheck
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from trainables.config import ProbeSpec, Run
from trainables.datasets import catalog

PLACES = 4  # for trials under way, for each lane
STILL_S = 1e9  # no lane is without work for thirty years


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: when nothing is ready, its clock jumps to what comes next."""

    def __init__(self) -> None:
        super().__init__(_Jump(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Jump(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop):
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulation stands still: everybody waits for somebody else")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


class MemoryStore(Store):
    """A store without files: what is published is only noted."""

    def __init__(self) -> None:
        self.uri, self.mark = "memory", None
        self._files: dict[str, bytes] = {}
        self._published: dict[str, StoredCheckpoint] = {}
        self._depths: set[int] = set()
        self._records: dict[tuple[str, str], dict[str, Any]] = {}

    def note(self, run: Run, begin: int, end: int) -> None:
        """`run` has come from `begin` to `end`."""
        key = history.key(run, end)
        self._published[key] = StoredCheckpoint(key, end, {"from_step": begin})
        self._depths.add(end)

    def find(self, run: Run, step: int) -> StoredCheckpoint | None:
        return self._published.get(history.key(run, step)) if step in self._depths else None

    def deepest(self, run: Run, step: int) -> StoredCheckpoint | None:
        for depth in sorted(self._depths, reverse=True):
            if depth <= step and (found := self.find(run, depth)):
                return found
        return None

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        return self._records.get((kind, key))

    def keep(self, kind: str, key: str, record: dict[str, Any]) -> None:
        """Note a record."""
        self._records[kind, key] = record

    @contextlib.contextmanager
    def open_picture(self, kind: str, key: str) -> Iterator[None]:
        yield None

    def local(self, *parts: str) -> None:
        return None

    def names(self, place: str) -> list[str]:
        return [name.rpartition("/")[2] for name in self._files if name.rpartition("/")[0] == place]

    def read(self, place: str) -> bytes | None:
        return self._files.get(place)

    def write(self, place: str, content: bytes) -> None:
        self._files[place] = content


@dataclass
class Outcome:
    """What a simulated sweep took and found. Steps are optimizer steps."""

    study: StudyState
    hours: float  # until the last trial ended
    steps: int
    training_gpu_hours: float
    probe_gpu_hours: float
    found: list[tuple[float, float]]  # (hours, the best metric among complete trials from then on)

    @property
    def gpu_hours(self) -> float:
        """Of training and probes."""
        return self.training_gpu_hours + self.probe_gpu_hours

    @property
    def complete(self) -> list[TrialState]:
        """The trials that came to their end."""
        return [trial for trial in self.study.distinct if trial.state == "COMPLETE"]


def simulate(
    space: Space,
    wanted: Sequence[Configuration],
    curve: Curve,
    lanes: int,
    gpus_per_lane: int = 8,
    sharing: bool = True,
) -> Outcome:
    """Run all `wanted` configurations, in their order, as a sweep of `space` would on `lanes` lanes.

    Args:
        sharing: otherwise as trial-based tuners do: each trial trains a teacher of its own, and nothing of another's.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_Sweep(space, wanted, curve, lanes, gpus_per_lane, sharing).run())


class _Study(StudyState):
    """A study whose probes are compared by `compare`: they exist in name only."""

    compare: Callable[[TrialState, TrialState, int, Recheck | None], Difference]

    def difference(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        return self.compare(trial, rival, step, recheck)


class _Sweep:
    def __init__(
        self,
        space: Space,
        wanted: Sequence[Configuration],
        curve: Curve,
        lanes: int,
        gpus: int,
        sharing: bool,
    ):
        self.store = MemoryStore()
        self.study = _Study(space, self.store)
        self.study.compare = self._compare
        self.dispatcher = Dispatcher(self.store, self.study.milestones, lanes)
        self.wanted, self.curve, self.gpus, self.sharing = list(reversed(wanted)), curve, gpus, sharing
        self.chosen: dict[int, Configuration] = {}
        self.order = EventOrder(self.study, self._propose, PLACES * lanes)
        self.lanes, self.training_s, self.probe_s = lanes, 0.0, 0.0
        self.found: list[tuple[float, float]] = []

    async def run(self) -> Outcome:
        clock = asyncio.get_running_loop().time
        working = [asyncio.create_task(self._lane(lane)) for lane in range(self.lanes)]
        going: set[asyncio.Task[None]] = set()
        while not self.order.finished:
            while rung_task := self.order.next():
                going.add(asyncio.create_task(self._run_rung_task(rung_task)))
            if going:
                ended, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                for leg_ended in ended:
                    leg_ended.result()
        hours = clock() / 3600
        await self.dispatcher.close()
        await asyncio.gather(*working)
        training, probes = (seconds * self.gpus / 3600 for seconds in (self.training_s, self.probe_s))
        return Outcome(self.study, hours, self.dispatcher.computed_steps, training, probes, self.found)

    def _propose(self) -> TrialState | None:
        while self.wanted:
            chosen = self.wanted.pop()
            trial = self.study.propose(chosen.point)
            if trial.repeats is None:
                self.chosen[trial.number] = chosen
                return trial
        return None

    async def _run_rung_task(self, rung_task: RungTask) -> None:
        for number in rung_task.trials:
            run = self.chosen[number].run if self.sharing else _alone(self.chosen[number].run, number)
            await self.dispatcher.reach(run, rung_task.step, str(number))
            await self.dispatcher.probe(run, rung_task.step, self._probe(number, rung_task.recheck), str(number))
        value = self.curve(self.chosen[rung_task.trial], rung_task.step)
        self.order.probed(rung_task, dict.fromkeys(self.study.space.probe.measured, value))
        best = self.study.best
        if best and (not self.found or best.last(self.study.metric) != self.found[-1][1]):
            self.found.append((asyncio.get_running_loop().time() / 3600, best.last(self.study.metric) or math.inf))

    def _compare(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        """What the probes of two trials say: `larger` times as many samples have so much less variance."""
        larger = self._probe(trial.number, recheck).samples // self._probe(trial.number, None).samples
        one, other = (self.curve(self.chosen[each.number], step, larger) for each in (trial, rival))
        return Difference(one - other, self.curve.noise * (2 / larger) ** 0.5)

    def _probe(self, number: int, recheck: Recheck | None) -> ProbeSpec:
        probe = self.chosen[number].probe
        return probe.model_copy(update={"samples": recheck.samples}) if recheck else probe

    async def _lane(self, lane: int) -> None:
        while (task := await self.dispatcher.next(lane, STILL_S)) != "stop":
            if not isinstance(task, Task):
                raise RuntimeError("the simulation stands still: trials wait, and no lane has work")
            seconds = self._seconds(task)
            await asyncio.sleep(seconds)
            if task.kind == "train":
                self.training_s += seconds
                self.store.note(task.run, task.begin, task.end)
            elif task.probe:
                self.probe_s += seconds
                self.store.keep("probes", probe_key(task.run, task.end, task.probe), {"probed": True})
            await self.dispatcher.done(lane, None)

    def _seconds(self, task: Task) -> float:
        run = task.run
        if task.probe:
            return price.probe_gpu_s(run, task.probe) / self.gpus
        kind = run.phase_after(task.begin).term.kind
        return (task.end - task.begin) * price.step_gpu_s(run, kind) / self.gpus


def _alone(run: Run, number: int) -> Run:
    """The same run with a history that no other trial shares."""
    phases = []
    for phase in run.phases:
        teacher = phase.teacher
        if teacher:
            teacher = teacher.model_copy(update={"run": _alone(teacher.run, number)})
        phases.append(phase.model_copy(update={"teacher": teacher}))
    return run.model_copy(update={"seed": number, "phases": tuple(phases)})


def take_on_trust() -> None:
    """From here on this process tells data and encoders apart by their names, whether or not they are here."""
    for name in (*catalog.DATASETS, "dinov2", "effnet_lite0"):
        catalog.TRUSTED[name] = f"simulated {name}"
