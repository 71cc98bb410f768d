"""Drivers that share a store divide the tasks: none is done twice, none is waited for for ever."""

import asyncio
import contextlib
import threading
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep.driver import open_studies
from raysweep.execution import task_leases
from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import Pool
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import Demand, Task, TaskOutdated
from raysweep.planning.simulation import MemoryStore
from raysweep.space import space
from raysweep.store import history
from raysweep.store.files import Files
from raysweep.store.history import probe_key
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.manifest import Platform, TrainingFacts
from raysweep.store.records import Certificate, ProbeRecord
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, ProbeSpec, Run

SPACES = Path(__file__).parents[2] / "search_spaces"
RUN = Run(backbone="SiT-T/2", data="emoji9", batch_size=4, phases=[Phase(until=40, term=NoTerm())])
PROBE = ProbeSpec(detector="effnet_lite0", samples=10)


@pytest.fixture
def store(tmp_path) -> Store:
    """A store with two checkpoints of a run."""
    made, folder = Store(str(tmp_path / "store")), tmp_path / "files"
    folder.mkdir()
    (folder / "state").write_bytes(b"x")
    for begin, end in [(0, 10), (10, 20)]:
        made.commit(RUN, end, folder, TrainingFacts(from_step=begin))
    return made


@pytest.mark.parametrize("kind", ["probe", "replay"])
def test_what_another_driver_has_finished_in_the_meantime_is_not_done_again(kind, store):
    leases = Leases(store.files)
    pool = Pool(1, TaskLeases(leases, store))
    dispatcher = Dispatcher(store, [10, 20], pool)

    async def scenario():
        ask = dispatcher.probe(RUN, 20, PROBE, "0") if kind == "probe" else dispatcher.replay(RUN, 20)
        asking = asyncio.create_task(ask)
        while await pool.next(0, 0.05) == "wait":  # until it is ready
            pass
        await pool.join(0)  # its workers die
        record = ProbeRecord({"fid": 1.0}) if kind == "probe" else Certificate("k", 20, 0, Platform(), True)
        key = probe_key(RUN, 20, PROBE) if kind == "probe" else history.key(RUN, 20)
        store.put_record(key, record)
        assert await pool.next(0, 0.5) == "wait"
        assert await asyncio.wait_for(asking, 30) == record
        await pool.close()

    asyncio.run(scenario())


class Turns:
    """Lets threads go on one at a time, in an order that is drawn."""

    def __init__(self, order: list[int], threads: int):
        self._order, self._alive, self._waiting = iter(order), set(range(threads)), set()
        self._chosen: int | None = None
        self._changed = threading.Condition()

    def take(self, me: int) -> None:
        """Wait for this thread's turn."""
        with self._changed:
            self._waiting.add(me)
            self._choose()
            assert self._changed.wait_for(lambda: self._chosen == me, timeout=60)
            self._waiting.discard(me)
            self._chosen = None

    def leave(self, me: int) -> None:
        """End this thread's part."""
        with self._changed:
            self._alive.discard(me)
            self._choose()

    def _choose(self) -> None:
        if self._chosen is None and self._waiting == self._alive and self._waiting:
            waiting = sorted(self._waiting)
            self._chosen = waiting[next(self._order, 0) % len(waiting)]
            self._changed.notify_all()


class OneAtATime(Leases):
    """Leases of a driver that waits for its turn before each call."""

    def __init__(self, files: Files, turns: Turns, me: int):
        super().__init__(files, beat_s=60, dead_s=120)
        self._turns, self._me = turns, me

    def others(self):
        self._turns.take(self._me)
        return iter(list(super().others()))

    def acquire(self, name, facts):
        self._turns.take(self._me)
        return super().acquire(name, facts)

    def release(self, name):
        self._turns.take(self._me)
        super().release(name)


def contend(files: Files, order: list[int], begins: list[int], attempts: int) -> list[int]:
    """How often each of some drivers gets to train its segment, one of 20 steps that begins there."""
    turns = Turns(order, len(begins))
    training: set[int] = set()
    results: dict[int, int] = {}

    def drive(me: int) -> None:
        leases = OneAtATime(files, turns, me)
        mine, trained = TaskLeases(leases, MemoryStore()), 0
        task = Task("train", RUN, begins[me], begins[me] + 20, Demand())
        try:
            for _ in range(attempts):
                with contextlib.suppress(TaskOutdated):
                    if asyncio.run(mine.take(task)):
                        training.add(me)
                        turns.take(me)
                        assert training == {me}, "two drivers train the same steps"
                        training.discard(me)
                        trained += 1
                        asyncio.run(mine.release(task))
            results[me] = trained
        finally:
            turns.leave(me)
            Leases.close(leases)

    threads = [threading.Thread(target=drive, args=(me,)) for me in range(len(begins))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return [results[me] for me in range(len(begins))]  # a KeyError: the assertion above


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(task_leases, "YIELD_S", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("begins", [[0, 10], [10, 0]])
def test_of_two_drivers_whose_segments_overlap_one_trains_at_a_time_in_each_order_of_their_calls(begins, tmp_path):
    for number, order in enumerate(product(range(2), repeat=7)):
        contend(Files(str(tmp_path / str(number))), list(order), begins, attempts=1)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(order=st.lists(st.integers(0, 2), max_size=60), begins=st.lists(st.integers(0, 20), min_size=2, max_size=3))
def test_of_drivers_that_ask_again_and_again_one_gets_the_segment(order, begins, tmp_path_factory):
    assert any(contend(Files(str(tmp_path_factory.mktemp("store"))), order, begins, attempts=10))


def test_two_drivers_with_the_same_spaces_in_another_order_get_them_one_after_the_other(tmp_path):
    spaces = [space.load(SPACES / f"{name}.yaml", "smoke") for name in ("table4", "table5")]
    files, both_hold_one = Files(str(tmp_path)), threading.Barrier(2)
    opened: dict[int, list[str]] = {}

    def drive(me: int) -> None:
        leases = Leases(files)

        def open_study(one: space.Space) -> str:
            for _ in range(100):
                if leases.acquire(f"study-{one.id}", LeaseFacts("study")):
                    with contextlib.suppress(threading.BrokenBarrierError):
                        both_hold_one.wait(timeout=1)
                    return one.id
                threading.Event().wait(0.1)
            raise TimeoutError("the two drivers wait for each other")

        try:
            opened[me] = open_studies(spaces[::-1] if me else spaces, open_study)
        finally:
            leases.close()

    threads = [threading.Thread(target=drive, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    ids = [one.id for one in spaces]
    assert opened == {0: ids, 1: ids[::-1]}
