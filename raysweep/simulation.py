"""A sweep on a virtual clock: the study, the dispatcher and ASHA that a real one has, over learning curves.

Nothing is trained. A lane sleeps for as long as the training would take at the speed that `price` assumes, and what a
probe would say comes from a curve; the clock jumps from one event to the next.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysweep import history, price
from raysweep.configurations import Configuration
from raysweep.dispatch import Dispatcher
from raysweep.domains import Shape, shape
from raysweep.space import Space
from raysweep.store import Found, Store
from raysweep.study import Study, TrialState
from raysweep.turns import Leg, Turns
from raysweep.work import Assignment, probe_key
from trainables import catalog
from trainables.spec import Run

PLACES = 4  # for trials under way, for each lane
STILL_S = 1e9  # no lane is without work for thirty years
Curve = Callable[[Configuration, int], float]  # the metric of a configuration at a step, as a probe would measure it


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
        self._published: dict[str, Found] = {}
        self._depths: set[int] = set()
        self._records: dict[tuple[str, str], dict[str, Any]] = {}

    def note(self, run: Run, begin: int, end: int) -> None:
        """`run` has come from `begin` to `end`."""
        key = history.key(run, end)
        self._published[key] = Found(key, end, {"from_step": begin})
        self._depths.add(end)

    def find(self, run: Run, step: int) -> Found | None:
        return self._published.get(history.key(run, step)) if step in self._depths else None

    def deepest(self, run: Run, step: int) -> Found | None:
        for depth in sorted(self._depths, reverse=True):
            if depth <= step and (found := self.find(run, depth)):
                return found
        return None

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        return self._records.get((kind, key))

    def keep(self, kind: str, key: str, record: dict[str, Any]) -> None:
        """Note a record."""
        self._records[kind, key] = record

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

    study: Study
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
        self.study = Study(space, self.store)
        self.dispatcher = Dispatcher(self.store, self.study.milestones, lanes)
        self.wanted, self.curve, self.gpus, self.sharing = list(reversed(wanted)), curve, gpus, sharing
        self.chosen: dict[int, Configuration] = {}
        self.turns = Turns(self.study, self._propose, PLACES * lanes)
        self.lanes, self.training_s, self.probe_s = lanes, 0.0, 0.0
        self.found: list[tuple[float, float]] = []

    async def run(self) -> Outcome:
        clock = asyncio.get_running_loop().time
        working = [asyncio.create_task(self._lane(lane)) for lane in range(self.lanes)]
        going: set[asyncio.Task[None]] = set()
        while not self.turns.finished:
            while leg := self.turns.next():
                going.add(asyncio.create_task(self._leg(leg)))
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

    async def _leg(self, leg: Leg) -> None:
        chosen, name = self.chosen[leg.trial], str(leg.trial)
        run = chosen.run if self.sharing else _alone(chosen.run, leg.trial)
        await self.dispatcher.reach(run, leg.step, name)
        await self.dispatcher.probe(run, leg.step, chosen.probe, name)
        value = self.curve(chosen, leg.step)
        self.turns.probed(leg, dict.fromkeys(self.study.space.probe.measured, value))
        best = self.study.best
        if best and (not self.found or best.last(self.study.metric) != self.found[-1][1]):
            self.found.append((asyncio.get_running_loop().time() / 3600, best.last(self.study.metric) or math.inf))

    async def _lane(self, lane: int) -> None:
        while (assignment := await self.dispatcher.next(lane, STILL_S)) != "stop":
            if not isinstance(assignment, Assignment):
                raise RuntimeError("the simulation stands still: trials wait, and no lane has work")
            seconds = self._seconds(assignment)
            await asyncio.sleep(seconds)
            if assignment.kind == "train":
                self.training_s += seconds
                self.store.note(assignment.run, assignment.begin, assignment.end)
            elif assignment.probe:
                self.probe_s += seconds
                self.store.keep("probes", probe_key(assignment.run, assignment.end, assignment.probe), {"probed": True})
            await self.dispatcher.done(lane, None)

    def _seconds(self, assignment: Assignment) -> float:
        run = assignment.run
        if assignment.probe:
            return price.probe_gpu_s(run, assignment.probe) / self.gpus
        kind = run.phase_after(assignment.begin).term.kind
        return (assignment.end - assignment.begin) * price.step_gpu_s(run, kind) / self.gpus


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


# --- learning curves


@dataclass
class Synthetic:
    """Curves that fall as a power of the step to a final value of each configuration's own.

    At step s of N: final · (s/N)^-fall, with a slope that differs from one to another, so that they cross; a probe adds
    noise. The final values are the published ones, or drawn like them.
    """

    seed: int = 0
    fall: float = 0.45
    spread: float = 0.15  # standard deviation of the slopes, relative
    noise: float = 0.1  # standard deviation of one probe, in units of the metric
    finals: Sequence[float] = (20.0, 25.0, 30.0, 35.0)

    def final(self, chosen: Configuration) -> float:
        """What the configuration is truly worth at its end."""
        chance = random.Random(f"{self.seed} {chosen.run.model_dump_json()}")
        drawn = random.Random(chance.random()).choice(self.finals) * math.exp(chance.gauss(0, 0.03))
        return drawn if chosen.published is None else chosen.published

    def __call__(self, chosen: Configuration, step: int) -> float:
        """As a probe would measure it."""
        name = f"{self.seed} {chosen.run.model_dump_json()}"
        slope = self.fall * math.exp(random.Random(f"slope {name}").gauss(0, self.spread))
        error = random.Random(f"probe {step} {name}").gauss(0, self.noise)
        return self.final(chosen) * (step / chosen.run.steps) ** -slope + error


@dataclass
class Recorded:
    """The curves that a study has measured, by configuration and step."""

    curves: Mapping[Shape, Mapping[int, float]]

    @classmethod
    def of(cls, study: Study) -> Recorded:
        """Those of a study whose journal is in a store."""
        metric = study.metric
        measured = {t.number: {step: m[metric] for step, m in t.probes.items()} for t in study.distinct if t.probes}
        return cls({shape(study.trials[number].point): curve for number, curve in measured.items()})

    def known(self, chosen: Configuration) -> bool:
        """Whether the configuration was measured at all."""
        return shape(chosen.point) in self.curves

    def final(self, chosen: Configuration) -> float:
        """Its value at its end."""
        return self(chosen, chosen.run.steps)

    def __call__(self, chosen: Configuration, step: int) -> float:
        """What was measured at that step; of a trial that was pruned before, its last value times how far those that
        went on came from there, in the geometric mean."""
        curve = self.curves[shape(chosen.point)]
        if step in curve:
            return curve[step]
        last = max((measured for measured in curve if measured < step), default=min(curve))
        falls = [math.log(other[step] / other[last]) for other in self.curves.values() if {step, last} <= set(other)]
        return curve[last] * math.exp(sum(falls) / len(falls)) if falls else curve[last]
