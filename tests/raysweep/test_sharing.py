"""No step is computed twice, and nothing changes by that: real training, real leases, no Ray."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import lanes
import pytest

from raysweep.space import runs, space
from raysweep.store import history
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.store import CheckpointDamaged, Store
from trainables.config import Run
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache

TABLE5 = Path(__file__).parents[2] / "search_spaces" / "table5.yaml"
# Minutes of requests; each of what they rest on (store, leases, journal) has tests of its own on both.
ON_S3_TOO = pytest.mark.parametrize("storage", ["folder", pytest.param("s3", marks=pytest.mark.chaos)], indirect=True)
STOPS = (50_000, 100_000, 150_000, 200_000, "never")


def ninety() -> tuple[list[Run], list[int]]:
    """Table 5's rows at five early-stop points, at the smoke profile, and where they publish."""
    loaded = space.load(TABLE5, "smoke")
    points = [row.set | {"method.stop": stop} for row in loaded.rows for stop in STOPS]
    return [runs.student(loaded, loaded.trial(point)[0]) for point in points], runs.milestones(loaded)


def steps_of_the_tree(students: list[Run]) -> int:
    """Each step of each history once: a step is what leads to a history at that step, whoever asks for it."""
    needed = [(run, run.steps) for run in students]
    needed += [(teacher.run, teacher.step) for run in students for teacher in runs.teachers(run)]
    return len({history.key(run, step) for run, end in needed for step in range(1, end + 1)})


def test_ninety_trials_compute_each_step_of_their_tree_once(tmp_path):
    students, milestones = ninety()
    lane = lanes.Lane(Store(str(tmp_path / "store")), milestones, cache=None)
    lane.run(lane.reach_all([(run, run.steps) for run in students]))
    assert lane.pool.computed_steps == steps_of_the_tree(students)
    assert lane.pool.computed_steps < sum(run.steps + runs.teacher_steps(run) for run in students)


@pytest.mark.slow
def test_trials_that_share_end_in_the_bits_of_separate_ones(tmp_path, cache):
    students, milestones = ninety()
    chosen = [students[stop] for stop in (0, 2, 4)]  # of the default row
    lane = lanes.Lane(Store(str(tmp_path / "store")), milestones, cache)
    lane.run(lane.reach_all([(run, run.steps) for run in chosen]))
    assert lane.pool.computed_steps == steps_of_the_tree(chosen)
    worker_cache = WorkerCache(Context(), cache)
    for number, run in list(enumerate(chosen))[1:]:
        mine = lanes.alone(run, run.steps, worker_cache, tmp_path / "alone" / str(number))
        assert mine == lanes.committed(lane.store, run, run.steps), number


@ON_S3_TOO
def test_two_drivers_at_the_same_moment_compute_each_shared_segment_once(storage):
    students, milestones = ninety()
    mine, yours = students[:2], students[1:2] + students[5:6]  # one of them is the same
    stores = [Store(storage), Store(storage)]
    if not stores[0].files.local():  # less of it: each request takes longer there
        mine, yours = mine[:1], yours[:1]
    # The second one's studies have fewer rungs; each driver has announced where its own are.
    announced = [milestones, milestones[-1:]]
    leases = [Leases(store.files, 0.2, 5.0) for store in stores]
    for number, (own, steps) in enumerate(zip(leases, announced, strict=True)):
        assert own.acquire(f"study-{number}", LeaseFacts("study", milestones=tuple(steps)))
    both = [lanes.Lane(*parts) for parts in zip(stores, announced, [None, None], leases, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(lane.run, lane.reach_all([(run, run.steps) for run in wanted]))
            for lane, wanted in zip(both, (mine, yours), strict=True)
        ]
        for job in jobs:
            job.result(timeout=300)
    assert sum(lane.pool.computed_steps for lane in both) == steps_of_the_tree(mine + yours)
    assert all(lane.trained for lane in both)  # neither did it all while the other slept


def test_a_longer_budget_goes_on_from_the_end(tmp_path, cache):
    store = Store(str(tmp_path / "store"))
    computed = []
    for iterations in (200_000, 400_000):
        loaded = space.load(TABLE5, "smoke", [f"trial.iterations={iterations}"])
        run = runs.student(loaded, loaded.trial({})[0])
        lane = lanes.Lane(store, runs.milestones(loaded), cache)
        lane.run(lane.reach_all([(run, run.steps)]))
        computed.append(lane.pool.computed_steps)
    assert computed == [4 + 4, 4]  # a teacher and a student, then the student's second half


@ON_S3_TOO
def test_any_damaged_file_is_repaired_by_recomputing_its_segment_alone(storage, cache, tmp_path, monkeypatch):
    """A teacher and two students that part at a stop; one file after another is damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(storage)
    students, milestones = ninety()[0][1:4:2], [2, 4, 8]
    wanted = [(run, run.steps) for run in students]
    if not store.files.local():  # the teacher alone: each round takes longer there
        wanted = [(teacher.run, teacher.step) for teacher in runs.teachers(students[0])]
    lane = lanes.Lane(store, milestones, cache)
    lane.run(lane.reach_all(wanted))
    ends = [(run, step) for run in everyone(students) for step in milestones if step <= run.steps]
    ends = list({history.key(run, step): (run, step) for run, step in ends if store.find(run, step)}.values())
    chance = random.Random(0)
    ways = cycle(["truncate", "flip", "delete", "flip"])  # test_store.py has all ways for each kind of file
    for number, (run, step) in enumerate(ends):
        key, before = history.key(run, step), lanes.committed(store, run, step)
        for name in ("manifest.json", sorted(before)[number % len(before)]):
            nonce = next(iter(store.find(run, step).manifest.files)).split("/")[0]
            inner = name if name == "manifest.json" else f"{nonce}/{name}"
            damage(store, f"checkpoints/{step}/{key}/{inner}", next(ways), chance)
            shutil.rmtree(tmp_path / "raysweep", ignore_errors=True)  # this machine's copies, of an object store
            # What the damage hides is only met by those who build on it, as a worker does.
            if checkpoint := store.get(key, step):
                with pytest.raises(CheckpointDamaged):
                    store.open(checkpoint)
            lane = lanes.Lane(store, milestones, cache)
            lane.run(lane.reach_all([(run, step), *wanted]))
            assert [(history.key(run, end), end) for run, _, end in lane.trained] == [(key, step)], name
            assert lanes.committed(store, run, step) == before


def everyone(students: list[Run]) -> list[Run]:
    return students + [teacher.run for run in students for teacher in runs.teachers(run)]


def damage(store: Store, place: str, how: str, chance: random.Random) -> None:
    content = store.files.read(place)
    byte = chance.randrange(len(content))
    if how == "delete":
        store.files.delete(place)
    elif how == "truncate":
        store.files.write(place, content[:byte])
    else:
        store.files.write(place, content[:byte] + bytes([content[byte] ^ 1]) + content[byte + 1 :])
