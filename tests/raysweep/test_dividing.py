"""Drivers that divide tasks among themselves while they stop, continue and die, and their storage calls go wrong.

The machine runs two or three drivers with runs in common. Dispatcher, pool, leases and store are the real ones, on a
folder and on a real S3 server, with a lane that commits without training. The machine decides when each storage call is
made, whether it is made at all, whether its answer arrives, and how time passes. In a calm example all
drivers begin at once and are only slow. Then nothing is computed twice.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fates import DEAD_S, FATES, Process, Storage, arrive, at_once
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raysweep import retry
from raysweep.execution import task_leases as task_leases_module
from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import Pool
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import Task
from raysweep.store import files as files_module
from raysweep.store import leases as leases_module
from raysweep.store.history import probe_key
from raysweep.store.leases import LeaseFacts
from raysweep.store.manifest import TrainingFacts
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, ProbeSpec, Run, SelfGuidedTerm, TeacherRef, VaeAlignTerm

BASE: dict[str, Any] = {"backbone": "SiT-T/2", "data": "emoji9", "batch_size": 4}
TEACHER = Run(**BASE, phases=[Phase(until=20, term=VaeAlignTerm(block=6), projector_width=8)])
PROBE = ProbeSpec(detector="effnet_lite0", samples=10)


def student(stop: int) -> Run:
    guide = SelfGuidedTerm(layers=(8, 6), guidance_scale=30.0)
    phase = Phase(until=stop, term=guide, projector_width=8, teacher=TeacherRef(run=TEACHER, step=10))
    return Run(**BASE, phases=[phase, Phase(until=40, term=NoTerm())])


WORK = [  # for each driver: the milestones of its runs, and the runs with the steps that it asks for
    ([10, 20, 30, 40], [(student(20), 40), (student(30), 30)]),
    ([10, 15, 20, 30], [(student(20), 30), (TEACHER, 20)]),
    ([10, 30, 40], [(student(30), 40)]),
]


@dataclass
class Training:
    """A task that a driver is carrying out, or has carried out."""

    task: Task
    begun: float
    ended: bool = False


@dataclass(eq=False)
class Driver:
    """A driver with one lane.

    Attributes:
        asked: when its lane last asked for a task.
        silent: the last time at which others could take it for dead.
        computed: the tasks whose result it has committed.
    """

    name: str
    store: Store
    work: tuple[Sequence[int], Sequence[tuple[Run, int]]]
    machine: Dividing
    process: Process = field(init=False)
    asked: float = 0.0
    silent: float = -1.0
    training: list[Training] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.process = Process(self.name, self.store.files, self._drive)

    def __repr__(self) -> str:
        return self.name

    @property
    def ended(self) -> bool:
        return self.process.ended

    def _drive(self, process: Process) -> None:
        process.run_loop(self._ask(), self.machine.monotonic)
        process.leases.close()

    async def _ask(self) -> None:
        milestones, wanted = self.work
        pool = Pool(1, TaskLeases(self.process.leases, self.store))
        dispatcher = Dispatcher(self.store, milestones, pool)
        lane = asyncio.create_task(self._serve(pool))

        async def ask(run: Run, step: int) -> None:
            await dispatcher.reach(run, step, self.name)
            await dispatcher.probe(run, step, PROBE, self.name)

        await asyncio.gather(*(ask(run, step) for run, step in wanted))
        await pool.close()
        await lane

    async def _serve(self, pool: Pool) -> None:
        self.asked = self.machine.clock
        while (tasks := await pool.next(0, 2.0)) != "stop":
            if tasks != "wait":
                assert not isinstance(tasks, str)
                (task,) = tasks
                self.machine.begins(self, task)
                await asyncio.sleep(1.0)
                stop = await pool.progress(0, (task.begin + task.end) // 2, 1.0)
                end = task.end if stop is None else stop
                await asyncio.sleep(1.0)
                await pool.retry_storage(lambda task=task, end=end: at_once(self._commit, task, end))
                self.machine.ends(self, task, end)
                await pool.done(0, [end])
            self.asked = self.machine.clock

    def _commit(self, task: Task, end: int) -> None:
        if task.kind == "probe":
            self.store.put_record(probe_key(task.run, task.end, PROBE), ProbeRecord({}))
        else:
            self.store.commit(task.run, end, self.machine.files, TrainingFacts(task.begin))


class Dividing(RuleBasedStateMachine):
    """The machine."""

    make_uri: Callable[[], str]
    files: Path  # of a checkpoint

    @initialize(calm=st.booleans())
    def begin(self, calm: bool) -> None:
        self.calm = calm
        self.uri, self.clock, self.storage = type(self).make_uri(), 0.0, Storage(self.beaten)
        self.drivers: list[Driver] = []
        self.late: list[Callable[[], Any]] = []
        self.beats: dict[str, float] = {}
        self.committed: list[tuple[Run, int]] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(files_module, "obstore", self.storage)
        self.patch.setattr(leases_module, "time", self)
        self.patch.setattr(task_leases_module, "time", self)
        self.patch.setattr(asyncio, "to_thread", at_once)
        self.patch.setattr(retry, "POLL_S", 0.5)
        for driver in [self.add() for _ in WORK] if calm else []:
            driver.process.start()

    # --- what `time` is to the leases

    def monotonic(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        """A driver waits. How long is for the machine to say."""
        next(driver.process for driver in self.drivers if driver.process.runs_here).pause()

    # --- what drivers do

    def begins(self, driver: Driver, task: Task) -> None:
        """A driver's lane begins a task."""
        since = driver.asked
        driver.training.append(Training(task, self.clock))
        for other in self.drivers:
            for training in other.training:
                if other is driver or other.ended or training.ended or not _collide(task, training.task):
                    continue
                assert other.silent >= training.begun or driver.silent >= since, (
                    f"{driver.name} begins {task}, which {other.name} is working on"
                )

    def ends(self, driver: Driver, task: Task, end: int) -> None:
        """A driver has committed a result."""
        done = driver.training[-1]
        done.ended, done.task = True, replace(task, end=end)
        if task.kind == "train":
            self.committed.append((task.run, end))

    def beaten(self, process: Process) -> None:
        """A driver's heartbeat has been written."""
        self.beats[process.name] = self.clock

    # --- what happens

    def add(self) -> Driver:
        store = Store(self.uri)
        store.files.check_writable()
        store.index()
        number = len(self.drivers)
        driver = Driver(f"driver {number}", store, WORK[number % len(WORK)], self)
        self.storage.add(driver.process)
        self.drivers.append(driver)
        facts = LeaseFacts("study", milestones=tuple(driver.work[0]))
        assert driver.process.leases.acquire(f"study-{number}", facts)
        return driver

    def living(self) -> list[Driver]:
        return [driver for driver in self.drivers if not driver.ended]

    def any_living(self) -> st.SearchStrategy[int]:
        return st.sampled_from([number for number, driver in enumerate(self.drivers) if not driver.ended])

    def step(self, driver: Driver, fate: str = "made") -> None:
        if not driver.ended and (late := driver.process.step(fate)):
            self.late.append(late)

    def passes(self, seconds: float) -> None:
        """Time passes."""
        self.clock += seconds
        for driver in self.living():
            if self.clock - self.beats.get(driver.name, -1e9) >= DEAD_S:
                driver.silent = self.clock

    @precondition(lambda self: not self.calm and len(self.drivers) < 4)
    @rule()
    def start(self) -> None:
        self.add().process.start()

    @precondition(lambda self: self.living())
    @rule(data=st.data(), steps=st.integers(1, 30), faults=st.booleans())
    def run(self, data: st.DataObject, steps: int, faults: bool) -> None:
        """Let a driver make some storage calls while the others stand still."""
        driver = self.drivers[data.draw(self.any_living())]
        for _ in range(steps):
            fate = data.draw(st.sampled_from(FATES)) if faults and not self.calm else "made"
            self.step(driver, fate)

    @precondition(lambda self: self.living())
    @rule(data=st.data(), rounds=st.sampled_from([5, 20, 80]), seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def run_together(self, data: st.DataObject, rounds: int, seconds: float) -> None:
        """Let some drivers make calls in turn, and beat, while time passes. The others are stopped."""
        running = [self.drivers[number] for number in data.draw(st.lists(self.any_living(), min_size=1, unique=True))]
        for _ in range(rounds):
            self.passes(seconds)
            for driver in running:
                self.step(driver)
            for driver in self.living() if self.calm else running:
                self.beat(driver)

    def beat(self, driver: Driver) -> None:
        if not driver.ended:
            driver.process.leases.beat()

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def make_late_call(self, data: st.DataObject) -> None:
        """A call arrives that its driver has given up."""
        arrive(self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    @precondition(lambda self: not self.calm and self.living())
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.drivers[data.draw(self.any_living())].process.step("killed")

    @rule(seconds=st.sampled_from([1.0, DEAD_S / 2, DEAD_S]))
    def wait(self, seconds: float) -> None:
        """Time passes while no driver does anything. In a calm example they beat."""
        self.passes(min(seconds, DEAD_S / 2) if self.calm else seconds)
        for driver in self.living() if self.calm else []:
            self.beat(driver)

    @invariant()
    def what_was_committed_is_there(self) -> None:
        if hasattr(self, "uri"):
            store = Store(self.uri)
            assert all(store.find(run, step) for run, step in self.committed[-3:])

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            try:
                self.end_well()
            finally:
                for driver in self.drivers:
                    while not driver.ended:
                        driver.process.step("killed")
                self.patch.undo()

    def end_well(self) -> None:
        """From here on, nothing goes wrong: all living drivers and a new one end, and have what they asked for."""
        self.add().process.start()
        for _ in range(1500):
            if not self.living():
                break
            self.passes(0.25)
            for driver in self.living():
                for _ in range(3):
                    self.step(driver)
                self.beat(driver)
        assert not self.living(), f"{[driver.name for driver in self.living()]} wait for ever"
        store = Store(self.uri)
        for run, step in [*self.committed, *self.drivers[-1].work[1]]:
            assert store.find(run, step)
        if self.calm:
            done = [training.task for driver in self.drivers for training in driver.training]
            twice = [f"{one} and {two}" for one, two in itertools.combinations(done, 2) if _collide(one, two)]
            assert not twice, twice


def _collide(one: Task, two: Task) -> bool:
    """Whether two tasks compute something twice."""
    return one.shares_steps(two) or (one.kind == two.kind == "probe" and one.result == two.result)


@pytest.mark.skip(reason="open: in rare examples two drivers still wait after 1,500 rounds; for ever?")
@pytest.mark.filterwarnings("ignore:coroutine")  # those of a process that was killed are never awaited
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_drivers_divide_their_tasks_whatever_happens(
    kind: str, memory_folder: Path, request: pytest.FixtureRequest
) -> None:
    template = str(memory_folder / "{}") if kind == "folder" else request.getfixturevalue("s3")
    Dividing.make_uri = staticmethod(lambda: template.format(uuid.uuid4().hex[:8]))
    Dividing.files = memory_folder / "files"
    Dividing.files.mkdir()
    (Dividing.files / "state.safetensors").write_bytes(b"x")
    run_state_machine_as_test(
        Dividing,
        settings=settings(
            max_examples=40 if kind == "folder" else 6,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    gc.collect()  # while the warnings are filtered
