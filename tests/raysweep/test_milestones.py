"""No step is computed twice that could be computed once, whatever the runs and whenever they come.

The dispatcher, the pool and the plan are the real ones. Lanes count steps on a virtual clock, and train nothing.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import Pool
from raysweep.execution.tasks import Task
from raysweep.planning.plan import Plan
from raysweep.planning.simulation import MemoryStore, VirtualLoop
from raysweep.space import runs
from raysweep.space.configurations import Configuration, configurations
from raysweep.space.milestones import Milestones
from raysweep.space.space import Space, SpaceFile
from raysweep.store import history
from trainables.config import Run

TREE = {
    "backbone": "SiT-T/2",
    "data": "emoji9",
    "batch_size": 4,
    "iterations": {"integers": [8, 40]},
    "method": {
        "kind": "self_guided",
        "guidance_scale": {"choice": [1.0, 30.0]},
        "stop": {"integers": [1, 40]},
        "teacher": {"method": {"choice": ["vae_align", "none"]}, "iterations": {"integers": [1, 20]}},
    },
}


def space_of(rows: Sequence[dict]) -> Space:
    """An exploration of exactly these rows, whose stops, ages and ends come from ranges."""
    file = {"study": "ranges", "trial": TREE, "search": {"trials": len(rows)}, "enqueue": [{"set": r} for r in rows]}
    return Space(SpaceFile.model_validate(file), "cluster")


@st.composite
def rows(draw) -> list[dict]:
    """Rows that share many of their steps."""
    row = st.fixed_dictionaries(
        {
            "iterations": st.integers(8, 40),
            "method.stop": st.integers(1, 40),
            "method.guidance_scale": st.sampled_from([1.0, 30.0]),
            "method.teacher.method": st.sampled_from(["vae_align", "none"]),
            "method.teacher.iterations": st.sampled_from([3, 7, 20]),
        }
    )
    return draw(st.lists(row, min_size=1, max_size=6, unique_by=lambda row: tuple(sorted(row.items()))))


@dataclass
class Sweep:
    """Trials that ask a dispatcher for their rungs one after another, and lanes that take one second for a step.

    Attributes:
        under_way: what each lane works on.
        first: (trunk, step) -> when it was computed first.
        needed: (trunk, step) -> since when a known trial needs a checkpoint there.
        again: what was computed again: trunk, step, and the step at which the task ended.
    """

    milestones: Sequence[int]
    lanes: int
    cohort: int
    under_way: dict[int, list[Task]] = field(default_factory=dict)
    first: dict[tuple[str, int], float] = field(default_factory=dict)
    needed: dict[tuple[str, int], float] = field(default_factory=dict)
    again: list[tuple[str, int, int]] = field(default_factory=list)

    def run(self, wanted: Sequence[Configuration], arrivals: Sequence[float]) -> int:
        """Returns how many steps were computed."""
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(self._run(wanted, arrivals))

    async def _run(self, wanted: Sequence[Configuration], arrivals: Sequence[float]) -> int:
        self.store, self.pool = MemoryStore(), Pool(self.lanes, leases=None, cohort=self.cohort)
        self.dispatcher = Dispatcher(self.store, self.milestones, self.pool)
        self.clock = asyncio.get_running_loop().time
        lanes = [asyncio.create_task(self._work(lane)) for lane in range(self.lanes)]
        await asyncio.gather(*(self._trial(*each) for each in zip(wanted, arrivals, strict=True)))
        await self.pool.close()
        await asyncio.gather(*lanes)
        return self.pool.computed_steps

    async def _trial(self, chosen: Configuration, arrives: float) -> None:
        await asyncio.sleep(arrives)
        for run, step in needs(chosen):
            self.needed.setdefault((history.trunk(run, step), step), self.clock())
        for rung in chosen.rungs:
            await self.dispatcher.reach(chosen.run, rung, "trial", chosen.rungs)

    async def _work(self, lane: int) -> None:
        while (tasks := await self.pool.next(lane, 1e9)) != "stop":
            self.under_way[lane] = tasks
            self._check_apart()
            step, end = tasks[0].begin, tasks[0].end
            computed = []
            while step < end:
                await asyncio.sleep(1)
                step += 1
                for task in tasks:
                    place = (history.trunk(task.run, step), step)
                    if place in self.first:
                        computed.append(place)
                    self.first.setdefault(place, self.clock())
                if (asked := await self.pool.progress(lane, step, 1.0)) is not None:
                    end = min(end, asked)
            self.again += [(trunk, again, step) for trunk, again in computed]
            for task in tasks:
                self.store.add_checkpoint(task.run, task.begin, step)
            del self.under_way[lane]
            await self.pool.done(lane, [step] * len(tasks))

    def _check_apart(self) -> None:
        """No two tasks that are under way train the same step."""
        segments = [task for tasks in self.under_way.values() for task in tasks]
        places = [(history.key(t.run, step)) for t in segments for step in range(t.begin + 1, t.end + 1)]
        assert len(places) == len(set(places)), [str(task) for task in segments]


def needs(chosen: Configuration) -> list[tuple[Run, int]]:
    """The checkpoints that a trial needs: run and step."""
    taught = [(teacher.run, teacher.step) for teacher in runs.teachers(chosen.run)]
    ends = [(run, phase.until) for run, end in [(chosen.run, chosen.run.steps), *taught] for phase in run.phases]
    return (
        [(chosen.run, rung) for rung in chosen.rungs] + taught + [(run, end) for run, end in ends if end <= run.steps]
    )


def distinct(wanted: Sequence[Configuration]) -> int:
    """How many different steps the trials and their teachers consist of."""
    needed = [(chosen.run, chosen.run.steps) for chosen in wanted]
    needed += [(teacher.run, teacher.step) for chosen in wanted for teacher in runs.teachers(chosen.run)]
    return len({history.key(run, step) for run, end in needed for step in range(1, end + 1)})


SIZES = {"lanes": st.integers(1, 4), "cohort": st.integers(1, 3)}


@given(rows=rows(), data=st.data(), **SIZES)
def test_rows_in_any_order_compute_each_step_once_and_cost_what_the_plan_says(rows, data, lanes, cohort):
    space = space_of(rows)
    wanted = list(configurations(space, []))
    arrivals = data.draw(st.lists(st.integers(0, 60), min_size=len(wanted), max_size=len(wanted)))
    sweep = Sweep(runs.milestones(space), lanes, cohort)
    assert sweep.run(wanted, arrivals) == distinct(wanted) == Plan([space]).grid.together.steps
    assert not sweep.again


@given(rows=rows(), **SIZES)
def test_trials_that_are_proposed_together_compute_each_step_once(rows, lanes, cohort):
    """Nothing is known of their stops, ages and ends before they are asked for, as if a sampler had proposed them."""
    wanted = list(configurations(space_of(rows), []))
    sweep = Sweep([], lanes, cohort)
    assert sweep.run(wanted, [0.0] * len(wanted)) == distinct(wanted)
    assert not sweep.again


@given(rows=rows(), data=st.data(), **SIZES)
def test_a_trial_that_comes_late_repeats_only_what_was_passed_before_it_came(rows, data, lanes, cohort):
    wanted = list(configurations(space_of(rows), []))
    arrivals = data.draw(st.lists(st.integers(0, 60), min_size=len(wanted), max_size=len(wanted)))
    sweep = Sweep([], lanes, cohort)
    assert sweep.run(wanted, arrivals) == distinct(wanted) + len(sweep.again)
    for trunk, _, end in sweep.again:  # a lane learns of a milestone when it reports its next step
        assert sweep.first[trunk, end] <= sweep.needed[trunk, end] + 1


def test_runs_on_other_trunks_are_not_cut():
    one, other = (Configuration.at(space_of([{}]), {"method.guidance_scale": scale}).run for scale in (1.0, 30.0))
    milestones = Milestones(history.trunk)
    milestones.add(one, [13])
    stop, teacher = one.phases[0].until, one.phases[0].teacher
    assert milestones.between(one, 0, one.steps) == [13, stop]
    assert milestones.between(one, 13, stop) == milestones.between(other, 0, other.steps) == []
    assert milestones.between(teacher.run, 0, 40) == [teacher.step]
