"""What lanes are given: each segment once, in a sensible order, and again when workers die."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from raysweep import retry
from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import ATTEMPTS, Pool
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import Demand, ExecutionStopped, Task, TaskFailed, describe
from raysweep.store import history
from raysweep.store.files import Files
from raysweep.store.history import probe_key
from raysweep.store.leases import Leases
from raysweep.store.manifest import TrainingFacts
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, ProbeSpec, Run, SelfGuidedTerm, TeacherRef, VaeAlignTerm

BASE = {"backbone": "SiT-T/2", "data": "emoji9", "batch_size": 4}
TEACHER = Run(**BASE, phases=[Phase(until=40, term=VaeAlignTerm(block=6), projector_width=8)])
MILESTONES = [10, 20, 30, 40]
PROBE = ProbeSpec(detector="effnet_lite0", samples=10)


def student(scale: float = 30.0, stop: int = 20) -> Run:
    guide = SelfGuidedTerm(layers=(8, 6), guidance_scale=scale)
    phase = Phase(until=stop, term=guide, projector_width=8, teacher=TeacherRef(run=TEACHER, step=20))
    return Run(**BASE, phases=[phase, Phase(until=40, term=NoTerm())])


class Lanes:
    """Lanes that commit at once what they are given, and remember it."""

    def __init__(
        self,
        root: Path,
        count: int = 2,
        cohort: int = 1,
        milestones: Sequence[int] = MILESTONES,
        leases: Leases | None = None,
    ):
        store = Store(str(root / "store"))
        self.pool = Pool(count, TaskLeases(leases, store) if leases else None, cohort=cohort)
        self.dispatcher = Dispatcher(store, milestones, self.pool)
        self.store, self.files = Store(str(root / "store")), root / "files"
        self.done: list[Task] = []
        self.cohorts: list[int] = []  # how many tasks were given out at a time
        self.files.mkdir(exist_ok=True)
        (self.files / "state.safetensors").write_bytes(b"x")
        self.count = count

    async def work(self, lane: int) -> None:
        while (tasks := await self.pool.next(lane, 0.05)) != "stop":
            if tasks == "wait":
                continue
            await asyncio.sleep(0.001)
            for task in tasks:
                if task.kind == "train":
                    self.store.commit(task.run, task.end, self.files, TrainingFacts())
                else:
                    key = probe_key(task.run, task.end, PROBE)
                    self.store.put_record(key, ProbeRecord({}))
            self.done += tasks
            self.cohorts.append(len(tasks))
            await self.pool.done(lane, None)

    async def serve(self, asking) -> None:
        workers = [asyncio.create_task(self.work(lane)) for lane in range(self.count)]
        try:
            await asking
        finally:
            await self.pool.close()
            await asyncio.gather(*workers)


def test_a_shared_teacher_is_trained_once_and_first(tmp_path):
    lanes = Lanes(tmp_path)

    async def asking():
        requests = [lanes.dispatcher.reach(student(scale), 40, n) for n, scale in enumerate((1.0, 15.0, 30.0))]
        await asyncio.gather(*requests, lanes.dispatcher.reach(student(1.0), 40, 3))

    asyncio.run(lanes.serve(asking()))
    keys = [history.key(task.run, task.end) for task in lanes.done]
    assert len(keys) == len(set(keys)) == 2 + 3 * 4
    assert [task.is_teacher for task in lanes.done[:2]] == [True, True]
    assert lanes.pool.computed_steps == 20 + 3 * 40


def test_two_stops_share_the_steps_before_the_earlier(tmp_path):
    lanes = Lanes(tmp_path)

    async def asking():
        await asyncio.gather(*(lanes.dispatcher.reach(student(stop=stop), 40, stop) for stop in (10, 20, 30)))

    asyncio.run(lanes.serve(asking()))
    # the teacher's 20, the guided trunk to 30, and what follows each stop
    assert lanes.pool.computed_steps == 20 + 30 + (30 + 20 + 10)


def test_what_is_in_the_store_is_not_computed_again(tmp_path):
    first = Lanes(tmp_path)
    asyncio.run(first.serve(first.dispatcher.reach(student(), 30, 0)))
    second = Lanes(tmp_path)
    asyncio.run(second.serve(second.dispatcher.reach(student(), 40, 0)))
    assert second.pool.computed_steps == 10
    third = Lanes(tmp_path)
    asyncio.run(third.serve(third.dispatcher.reach(student(), 40, 0)))
    assert third.done == []


def test_a_checkpoint_between_the_milestones_is_used(tmp_path):
    other = Lanes(tmp_path, milestones=[15])
    asyncio.run(other.serve(other.dispatcher.reach(TEACHER, 15, 0)))
    lanes = Lanes(tmp_path)
    asyncio.run(lanes.serve(lanes.dispatcher.reach(TEACHER, 30, 0)))
    assert [(task.begin, task.end) for task in lanes.done] == [(15, 20), (20, 30)]


def test_a_probe_is_answered_from_its_record(tmp_path):
    lanes = Lanes(tmp_path)

    async def asking():
        await lanes.dispatcher.reach(student(), 10, 0)
        for _ in range(3):
            assert await lanes.dispatcher.probe(student(), 10, PROBE, 0) == ProbeRecord({})

    asyncio.run(lanes.serve(asking()))
    assert [task.kind for task in lanes.done].count("probe") == 1


def test_a_damaged_checkpoint_is_computed_again_and_nothing_else(tmp_path):
    first = Lanes(tmp_path)
    asyncio.run(first.serve(first.dispatcher.reach(student(), 20, 0)))
    victim = tmp_path / "store" / "checkpoints" / "20" / history.key(student(), 20) / "manifest.json"
    victim.write_bytes(victim.read_bytes()[:50])
    second = Lanes(tmp_path)
    asyncio.run(second.serve(second.dispatcher.reach(student(), 30, 0)))
    assert [(task.begin, task.end) for task in second.done] == [(10, 20), (20, 30)]


def test_the_task_of_dead_workers_is_given_out_again_but_not_for_ever(tmp_path):
    pool = Pool(1, leases=None)
    dispatcher = Dispatcher(Store(str(tmp_path / "store")), MILESTONES, pool)

    async def scenario():
        asking = asyncio.create_task(dispatcher.reach(TEACHER, 10, 0))
        for _ in range(ATTEMPTS):
            (task,) = await pool.next(0, 1)
            assert (task.begin, task.end) == (0, 10)
            await pool.join(0)  # new workers: the old ones died
        with pytest.raises(TaskFailed, match="died"):
            await asking

    asyncio.run(scenario())


def test_waiting_ends_when_no_lane_is_left(tmp_path):
    pool = Pool(1, leases=None)
    dispatcher = Dispatcher(Store(str(tmp_path / "store")), MILESTONES, pool)

    async def scenario():
        asking = asyncio.create_task(dispatcher.reach(student(), 10, 0))
        await asyncio.sleep(0)
        await pool.next(0, 1)
        await pool.lane_lost(0, "no such node")
        with pytest.raises(TaskFailed, match="no such node"):
            await asyncio.wait_for(asking, 5)
        with pytest.raises(TaskFailed):
            await dispatcher.reach(student(15.0), 10, 0)

    asyncio.run(scenario())


def test_a_failed_segment_fails_the_trials_that_need_it_and_no_others(tmp_path):
    pool = Pool(1, leases=None)
    dispatcher = Dispatcher(Store(str(tmp_path / "store")), MILESTONES, pool)

    async def scenario():
        asking = asyncio.create_task(dispatcher.reach(TEACHER, 10, 0))
        await pool.next(0, 1)
        await pool.failed(0, "not finite at step 3")
        with pytest.raises(TaskFailed, match="step 3"):
            await asking
        other = asyncio.create_task(dispatcher.reach(student(), 10, 1))
        assert (await pool.next(0, 1))[0].is_teacher
        other.cancel()

    asyncio.run(scenario())


def test_a_task_that_runs_out_of_memory_is_given_out_again_with_half_the_micro_batch(tmp_path):
    """A batch of 4 on one worker: 4 images at once, then 2, then 1, then it cannot be."""
    pool = Pool(1, leases=None)
    dispatcher = Dispatcher(Store(str(tmp_path / "store")), MILESTONES, pool)

    async def scenario():
        asking = asyncio.create_task(dispatcher.reach(TEACHER, 10, 0))
        seen = []
        for _ in range(3):
            seen.append((await pool.next(0, 1))[0].micro_batch)
            await pool.out_of_memory(0)
            if len(seen) < 3:
                await pool.out_of_memory(0)  # another worker says the same
                await pool.join(0)
        assert seen == [None, 2, 1]
        with pytest.raises(TaskFailed, match="single image"):
            await asking
        assert len(pool.notes) == 2 and all("out of memory" in note for note in pool.notes)

    asyncio.run(scenario())


def test_later_tasks_of_that_kind_start_with_the_smaller_micro_batch(tmp_path):
    lanes = Lanes(tmp_path, count=1)

    async def asking():
        first = asyncio.create_task(lanes.dispatcher.reach(TEACHER, 20, 0))
        while not lanes.pool.lanes[0].tasks:
            await asyncio.sleep(0)
        await lanes.pool.out_of_memory(0)
        await first

    asyncio.run(lanes.serve(asking()))
    assert [task.micro_batch for task in lanes.done if task.begin] == [2]


def test_an_interrupted_segment_goes_on_from_its_checkpoint(tmp_path):
    lanes = Lanes(tmp_path)

    async def scenario():
        asking = asyncio.create_task(lanes.dispatcher.reach(TEACHER, 10, 0))
        (task,) = await lanes.pool.next(0, 1)
        lanes.store.commit(task.run, 4, lanes.files, TrainingFacts())
        await lanes.pool.done(0, [4])
        (rest,) = await lanes.pool.next(0, 1)
        assert (rest.begin, rest.end) == (4, 10)
        lanes.store.commit(rest.run, 10, lanes.files, TrainingFacts())
        await lanes.pool.done(0, [10])
        await asking
        assert lanes.pool.computed_steps == 10

    asyncio.run(scenario())


def test_a_stop_reaches_lanes_that_train_and_nothing_more_is_given_out(tmp_path):
    pool = Pool(2, leases=None)
    dispatcher = Dispatcher(Store(str(tmp_path / "store")), MILESTONES, pool)

    async def scenario():
        asking = asyncio.create_task(dispatcher.reach(TEACHER, 10, 0))
        await pool.next(0, 1)
        assert await pool.progress(0, 3, 1.0) is None
        await pool.stop()
        assert await pool.progress(0, 4, 1.0) == 0
        assert await pool.next(1, 1) == "stop"
        asking.cancel()

    asyncio.run(scenario())


def test_a_lane_may_finish_what_an_earlier_dispatcher_gave_it(tmp_path):
    """The earlier dispatcher died. Its successor does not know the task, and its result is in the store."""
    lanes = Lanes(tmp_path)

    async def scenario():
        lanes.store.commit(TEACHER, 10, lanes.files, TrainingFacts())
        await lanes.pool.done(0, [10])
        await asyncio.wait_for(lanes.dispatcher.reach(TEACHER, 10, 0), 5)
        assert await lanes.pool.next(0, 0.05) == "wait"

    asyncio.run(scenario())


def cohort_of(lanes: Lanes, runs: list[Run], step: int = 10) -> asyncio.Future:
    """A future that is done when all of these have been reached."""
    return asyncio.gather(*(lanes.dispatcher.reach(run, step, str(n)) for n, run in enumerate(runs)))


def teach(lanes: Lanes) -> None:
    lanes.store.commit(TEACHER, 20, lanes.files, TrainingFacts())


@pytest.mark.parametrize(("cohort", "sizes"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (4, [4, 1]), (8, [5])])
def test_students_of_one_teacher_form_a_cohort(cohort, sizes, tmp_path):
    lanes = Lanes(tmp_path, count=1, cohort=cohort)
    teach(lanes)

    async def asking():
        await cohort_of(lanes, [student(scale) for scale in (1.0, 2.0, 3.0, 4.0, 5.0)])

    asyncio.run(lanes.serve(asking()))
    assert lanes.cohorts == sizes
    assert lanes.pool.computed_steps == 50
    assert lanes.pool.lanes[0].served == len(sizes)


def test_idle_lanes_share_a_cohort(tmp_path):
    lanes = Lanes(tmp_path, count=2, cohort=8)
    teach(lanes)

    async def scenario():
        asking = cohort_of(lanes, [student(scale) for scale in (1.0, 2.0, 3.0, 4.0, 5.0)])
        given = [await lanes.pool.next(lane, 1) for lane in range(2)]
        assert [len(tasks) for tasks in given] == [3, 2]
        asking.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 8}, {"precision": "bf16"}])
def test_students_that_see_other_batches_are_trained_alone(other, tmp_path):
    lanes = Lanes(tmp_path, count=1, cohort=8)
    teach(lanes)

    async def scenario():
        stranger = student(2.0).model_copy(update=other)
        plain = Run(**BASE, phases=[Phase(until=40, term=NoTerm())])
        asking = cohort_of(lanes, [student(1.0), stranger, plain, student(3.0)])
        given = []
        for _ in range(3):
            given.append(await lanes.pool.next(0, 1))
            for task in given[-1]:
                lanes.store.commit(task.run, task.end, lanes.files, TrainingFacts())
            await lanes.pool.done(0, None)
        owners = [sorted(str(task.owner) for task in tasks) for tasks in given]
        assert sorted(owners) == [["0", "3"], ["1"], ["2"]]
        pair = next(tasks for tasks in given if len(tasks) == 2)
        assert describe(pair) == f"trials {pair[0].owner}, {pair[1].owner} from step 0 to 10"
        await asking

    asyncio.run(scenario())


def test_a_member_that_goes_wrong_is_tried_by_itself(tmp_path):
    lanes = Lanes(tmp_path, count=1, cohort=8)
    teach(lanes)

    async def scenario():
        asking = cohort_of(lanes, [student(scale) for scale in (1.0, 2.0, 3.0)])
        tasks = await lanes.pool.next(0, 1)
        for member in tasks[1:]:
            lanes.store.commit(member.run, 10, lanes.files, TrainingFacts())
        await lanes.pool.done(0, [None, 10, 10])
        (again,) = await lanes.pool.next(0, 1)
        assert again is tasks[0]
        await lanes.pool.failed(0, "not finite, twice")
        with pytest.raises(TaskFailed, match="twice"):
            await asking
        assert lanes.pool.computed_steps == 20

    asyncio.run(scenario())


def test_a_cohort_that_runs_out_of_memory_is_split(tmp_path):
    lanes = Lanes(tmp_path, count=1, cohort=8)
    teach(lanes)

    async def scenario():
        asking = cohort_of(lanes, [student(scale) for scale in (1.0, 2.0, 3.0)])
        assert len(await lanes.pool.next(0, 1)) == 3
        await lanes.pool.out_of_memory(0)
        await lanes.pool.join(0)  # its workers have started anew
        (given,) = await lanes.pool.next(0, 1)
        assert given.attempts == 1 and given.micro_batch is None
        assert any("one by one" in note for note in lanes.pool.notes)
        asking.cancel()

    asyncio.run(scenario())


def test_a_cohort_whose_workers_die_is_tried_once_more_and_then_split(tmp_path):
    lanes = Lanes(tmp_path, count=1, cohort=8)
    teach(lanes)

    async def scenario():
        asking = cohort_of(lanes, [student(scale) for scale in (1.0, 2.0, 3.0)])
        sizes = []
        for _ in range(3):
            sizes.append(len(await lanes.pool.next(0, 1)))
            await lanes.pool.join(0)
        assert sizes == [3, 3, 1]
        asking.cancel()

    asyncio.run(scenario())


class Away(Files):
    """A storage that raises an error for the next `away` requests."""

    def __init__(self, uri: str, away: int):
        super().__init__(uri)
        self.away = away

    def names(self, folder):
        self._answer()
        return super().names(folder)

    def read(self, path):
        self._answer()
        return super().read(path)

    def _answer(self):
        if self.away:
            self.away -= 1
            raise OSError(5, "Input/output error")


def test_a_storage_that_is_away_for_a_while_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "POLL_S", 0.001)
    lanes = Lanes(tmp_path)
    lanes.dispatcher.store.files = Away(str(tmp_path / "store"), 20)
    asyncio.run(lanes.serve(lanes.dispatcher.reach(TEACHER, 10, 0)))
    assert [(task.begin, task.end) for task in lanes.done] == [(0, 10)]
    assert len(lanes.pool.notes) == 1 and "Input/output error" in lanes.pool.notes[0]


def test_a_storage_that_stays_away_ends_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "POLL_S", 0.001)
    monkeypatch.setattr(retry, "RETRY_LIMIT_S", 0.05)
    pool = Pool(1, leases=None)
    dispatcher = Dispatcher(Store(str(tmp_path / "store")), MILESTONES, pool)
    dispatcher.store.files = Away(str(tmp_path / "store"), 10**9)

    async def scenario():
        asked = [dispatcher.reach(TEACHER, 10, 0), dispatcher.reach(student(), 10, 1)]
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        assert all(isinstance(answer, ExecutionStopped) for answer in answers), answers

    asyncio.run(scenario())


# --- a storage that is away or slow, and calls that nobody waits for any more


class Hanging(Leases):
    """Leases on a storage whose calls raise an error, or do not end, until `back` is set."""

    def __init__(self, files: Files, raises: bool):
        super().__init__(files)
        self.raises, self.back = raises, threading.Event()

    def others(self):
        if self.raises and not self.back.is_set():
            raise OSError(5, "Input/output error")
        assert self.back.wait(60)
        return super().others()


@pytest.fixture(params=["raises", "hangs"])
def away(request, tmp_path, monkeypatch) -> Hanging:
    """Leases on a storage that is away."""
    monkeypatch.setattr(retry, "POLL_S", 0.01)
    return Hanging(Files(str(tmp_path / "store")), request.param == "raises")


async def train_four(lanes: Lanes) -> asyncio.Future:
    """A future that is done when four tasks that share nothing are done. They are ready when this returns."""
    tasks = [Task("train", plain(seed), 0, 10, Demand(), owner=str(seed)) for seed in range(4)]
    asking = asyncio.gather(*map(lanes.pool.submit, tasks))
    await asyncio.sleep(0)
    return asking


def plain(seed: int) -> Run:
    return Run(**BASE, seed=seed, phases=[Phase(until=40, term=NoTerm())])


def test_a_lane_is_answered_in_time_while_the_storage_is_away(tmp_path, away):
    lanes = Lanes(tmp_path, leases=away)

    async def scenario():
        asking = await train_four(lanes)
        for _ in range(3):
            assert await asyncio.wait_for(lanes.pool.next(0, 0.05), 20) == "wait"
        away.back.set()
        await asyncio.wait_for(lanes.serve(asking), 60)
        assert lanes.pool.computed_steps == 40

    asyncio.run(scenario())


@pytest.mark.parametrize("orphans", [1, 3])
@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("cancel", [True, False])
def test_what_an_orphaned_call_takes_is_done_by_others(orphans, join, cancel, tmp_path, away):
    """The workers of a lane gave up waiting for an answer. The storage comes back before or after their successors."""
    lanes = Lanes(tmp_path, leases=away)

    async def scenario():
        asking = await train_four(lanes)
        calls = []
        for _ in range(orphans):
            calls.append(asyncio.create_task(lanes.pool.next(0, 60)))
            await asyncio.sleep(0.05)
        if cancel:
            calls[-1].cancel()
        if join:
            await lanes.pool.join(0)
        away.back.set()
        await asyncio.wait_for(lanes.serve(asking), 60)
        assert [await call for call in calls[: -1 if cancel else None]] == ["wait"] * (orphans - cancel)
        assert lanes.pool.computed_steps == 40
        assert sorted(task.run.seed for task in lanes.done) == [0, 1, 2, 3]

    asyncio.run(scenario())


def test_tasks_whose_answer_was_lost_are_done_by_others(tmp_path):
    lanes = Lanes(tmp_path)

    async def scenario():
        asking = await train_four(lanes)
        await lanes.pool.next(0, 5)
        await lanes.pool.next(0, 5)
        await lanes.pool.join(0)
        await asyncio.wait_for(lanes.serve(asking), 60)
        assert lanes.pool.computed_steps == 40

    asyncio.run(scenario())


def test_a_call_that_is_cancelled_as_it_gets_a_task_loses_none(tmp_path):
    lanes = Lanes(tmp_path)

    async def scenario():
        asking = await train_four(lanes)
        call = asyncio.create_task(lanes.pool.next(0, 60))
        while not lanes.pool.lanes[0].tasks:
            await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await asyncio.wait_for(lanes.serve(asking), 60)
        assert lanes.pool.computed_steps == 40

    asyncio.run(scenario())


def test_a_lane_that_is_lost_while_its_lease_is_taken_loses_no_task(tmp_path, away):
    lanes = Lanes(tmp_path, leases=away)

    async def scenario():
        asking = await train_four(lanes)
        call = asyncio.create_task(lanes.pool.next(0, 60))
        await asyncio.sleep(0.05)
        await lanes.pool.lane_lost(0, "its node is gone")
        away.back.set()
        assert await call == "stop"
        await asyncio.wait_for(lanes.serve(asking), 60)
        assert lanes.pool.computed_steps == 40

    asyncio.run(scenario())


def test_a_slow_storage_keeps_nobody_else_waiting(tmp_path):
    """A question to the store that does not end, while lanes and the driver are answered."""
    lanes, answer = Lanes(tmp_path), threading.Event()
    deepest = lanes.dispatcher.store.deepest

    def slow(run: Run, step: int):
        assert run.seed != 7 or answer.wait(60)
        return deepest(run, step)

    lanes.dispatcher.store.deepest = slow

    async def scenario():
        stuck = asyncio.create_task(lanes.dispatcher.reach(plain(7), 10, "stuck"))
        asking = asyncio.create_task(lanes.dispatcher.reach(plain(1), 10, "other"))
        (task,) = await asyncio.wait_for(lanes.pool.next(0, 20), 30)
        assert task.owner == "other" and (await lanes.pool.status()).activity.lanes
        answer.set()
        await lanes.pool.join(0)
        await asyncio.wait_for(lanes.serve(asyncio.gather(stuck, asking)), 60)

    asyncio.run(scenario())
