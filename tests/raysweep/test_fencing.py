"""Drivers that stop, continue and die between any two storage calls, whose writes are lost, slow or late.

The machine runs two or three drivers on one study: each takes its lease, takes over its journal and appends entries.
Journal, leases and files are the real ones, on a folder and on a real S3 server. The machine decides when each storage
call of a driver is made, whether it is made at all, and whether its answer arrives.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fates import DEAD_S, FATES, Process, Storage, arrive
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
from raysweep.errors import SweepError
from raysweep.store import files as files_module
from raysweep.store import leases as leases_module
from raysweep.store.files import Files
from raysweep.store.leases import LeaseFacts
from raysweep.study import journal as journal_module
from raysweep.study.journal import Journal


class Driver:
    """A driver that takes the lease on a study, takes over its journal, and appends six entries."""

    def __init__(self, name: str, uri: str):
        self.name, self.process = name, Process(name, Files(uri), self._drive)
        self.leases = self.process.leases
        self.holds = self.superseded = False
        self.acknowledged: list[tuple[str, int]] = []

    @property
    def ended(self) -> bool:
        return self.process.ended

    def _drive(self, process: Process) -> None:
        while not self.leases.acquire("study-x", LeaseFacts("study")):
            process.pause()
        self.holds = True
        try:
            journal = Journal(process.files, "x")
            journal.take_over()
            for number in range(6):
                journal.append("noted", by=self.name, number=number)
                self.acknowledged.append((self.name, number))
        except SweepError:  # another driver has taken over
            pass
        self.holds = False
        self.leases.release("study-x")


class Drivers(RuleBasedStateMachine):
    """The machine."""

    make_uri: Callable[[], str]

    @initialize()
    def begin(self) -> None:
        self.uri, self.clock, self.storage = type(self).make_uri(), 0.0, Storage(self.beaten)
        self.drivers: list[Driver] = []
        self.late: list[Callable[[], Any]] = []
        self.beats: dict[str, float] = {}
        self.read: list[dict[str, Any]] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(files_module, "obstore", self.storage)
        self.patch.setattr(leases_module, "time", self)
        self.patch.setattr(retry, "POLL_S", 0.0)
        self.patch.setattr(journal_module, "PART", 3)

    def monotonic(self) -> float:
        """The clock of the leases."""
        return self.clock

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            try:
                self.end_well()
            finally:
                for driver in self.drivers:
                    while not driver.ended:
                        driver.process.step("killed")
                    driver.leases.close()
                self.patch.undo()

    @precondition(lambda self: len(self.drivers) < 4)
    @rule()
    def start(self) -> None:
        self.add()

    def add(self) -> Driver:
        return self.begin_driver(f"driver {len(self.drivers)}")

    def begin_driver(self, name: str) -> Driver:
        driver = Driver(name, self.uri)
        driver.process.files.check_writable()
        self.storage.add(driver.process)
        self.drivers.append(driver)
        driver.process.start()
        return driver

    def living(self) -> list[Driver]:
        return [driver for driver in self.drivers if not driver.ended]

    @precondition(lambda self: self.living())
    @rule(data=st.data(), steps=st.integers(1, 12))
    def run(self, data: st.DataObject, steps: int) -> None:
        """Let a driver make some storage calls while the others stand still, beating or not."""
        driver = data.draw(st.sampled_from(self.living()))
        for _ in range(steps):
            if not driver.ended:
                self.step(driver, data.draw(st.sampled_from(FATES)))

    def step(self, driver: Driver, fate: str) -> None:
        held = driver.holds
        if late := driver.process.step(fate):
            self.late.append(late)
        if driver.holds and not held:
            for other in self.drivers:
                if other is not driver and other.holds and not other.superseded:
                    silent = self.clock - self.beats.get(other.name, -1e9)
                    assert silent >= DEAD_S or other.ended, "two living owners of one lease"
                    other.superseded = True  # it may wake up, and does not know yet

    @precondition(lambda self: self.living())
    @rule(data=st.data(), steps=st.sampled_from([0, 3, 8, 100]), beats=st.booleans())
    def overtake(self, data: st.DataObject, steps: int, beats: bool) -> None:
        """A driver waits until it has the lease, and works on for some calls, while the others are stopped."""
        driver = data.draw(st.sampled_from(self.living()))
        self.work(driver, steps)
        if beats and not driver.ended:
            driver.leases.beat()

    def work(self, driver: Driver, steps: int) -> None:
        """Let a driver wait until it has the lease, and make some calls afterwards."""
        for _ in range(100):
            if not (driver.ended or driver.holds):
                self.clock += 1.0
                self.step(driver, "made")
        for _ in range(steps):
            if not driver.ended:
                self.step(driver, "made")

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def make_late_call(self, data: st.DataObject) -> None:
        """A write arrives that its driver has given up."""
        arrive(self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.living())).process.step("killed")

    @rule(seconds=st.sampled_from([1.0, DEAD_S / 2, DEAD_S]), data=st.data())
    def wait(self, seconds: float, data: st.DataObject) -> None:
        """Time passes. Drivers that are not stopped beat."""
        beating = data.draw(st.lists(st.sampled_from(self.drivers), unique=True)) if self.drivers else []
        self.clock += seconds
        for driver in beating:
            if not driver.ended:
                driver.leases.beat()

    def beaten(self, process: Process) -> None:
        """A driver's heartbeat has been written."""
        self.beats[process.name] = self.clock

    @invariant()
    def nothing_is_lost_or_replaced(self) -> None:
        if not hasattr(self, "uri"):
            return
        journal = Journal(Files(self.uri), "x")
        entries = journal.read()
        assert entries[: len(self.read)] == self.read, "an entry was lost or replaced"
        self.read = entries
        stored = [(entry["by"], entry["number"]) for entry in entries]
        for driver in self.drivers:
            own = [entry for entry in stored if entry[0] == driver.name]
            assert own[: len(driver.acknowledged)] == driver.acknowledged, "an acknowledged entry is missing"
            assert own == [(driver.name, number) for number in range(len(own))]
        writers = [entry[0] for entry in stored]
        assert len([1 for a, b in zip(writers, writers[1:], strict=False) if a != b]) == max(
            0, len(set(writers)) - 1
        ), "a driver wrote after it was overtaken"

    def end_well(self) -> None:
        """Whatever has happened, a new driver carries on, and all others end."""
        for driver in self.drivers:
            if driver.ended:
                continue
            driver.process.step("killed")
        last = self.begin_driver("the last")
        for _ in range(400):
            if last.ended:
                break
            self.clock += 1.0
            self.step(last, "made")
        assert last.ended and len(last.acknowledged) == 6, "the next driver waits for ever"
        while self.late:
            arrive(self.late.pop())
        self.nothing_is_lost_or_replaced()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_several_drivers_one_counts_and_nothing_is_lost(
    kind: str, memory_folder: Path, request: pytest.FixtureRequest
):
    template = str(memory_folder / "{}") if kind == "folder" else request.getfixturevalue("s3")
    Drivers.make_uri = staticmethod(lambda: template.format(uuid.uuid4().hex[:8]))
    examples = 100 if kind == "folder" else 10
    run_state_machine_as_test(
        Drivers,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize(("steps", "others"), [(0, 2), (12, 2), (200, 1), (200, 2)])
def test_a_driver_that_is_stopped_before_any_storage_call_does_no_harm(
    steps: int, others: int, memory_folder: Path
) -> None:
    """The first driver is stopped before its n-th call, for each n. Others overtake it and come some calls further, or
    to their end. Then it goes on, and one more driver begins."""
    Drivers.make_uri = staticmethod(lambda: str(memory_folder / uuid.uuid4().hex[:8]))
    for calls in itertools.count():
        machine = Drivers()
        machine.begin()
        try:
            first = machine.add()
            for _ in range(calls):
                if not first.ended:
                    machine.step(first, "made")
            if first.ended:
                return
            for _ in range(others):
                other = machine.add()
                machine.work(other, steps)
                if not other.ended:
                    other.leases.beat()
                machine.nothing_is_lost_or_replaced()
            for driver in (first, machine.add()):
                for _ in range(20):
                    if not driver.ended:
                        machine.step(driver, "made")
                machine.nothing_is_lost_or_replaced()
        finally:
            machine.teardown()
