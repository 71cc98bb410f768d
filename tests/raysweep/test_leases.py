"""One history, one computer: of all who share a store, one has the lease, and a dead one's is taken over."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.store import Store

BEAT_S, DEAD_S = 0.2, 1.5

OWNER = f"""
import sys, time
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.store import Store
leases = Leases(Store(sys.argv[1]).files, {BEAT_S}, {DEAD_S})
print(leases.acquire("work", LeaseFacts()), flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(storage):
    """Another process, which has the lease `work`."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, storage], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "True"
    yield process
    process.kill()
    process.wait()


def leases(storage: str) -> Leases:
    return Leases(Store(storage).files, BEAT_S, DEAD_S)


def take(mine: Leases, limit_s: float) -> float:
    """Seconds until the lease is ours."""
    began = time.monotonic()
    while not mine.acquire("work", LeaseFacts()):
        assert time.monotonic() - began < limit_s, "nobody may wait for ever"
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_lease_has_one_owner_at_a_time(storage):
    one, other = leases(storage), leases(storage)
    assert one.acquire("work", LeaseFacts(end=3)) and one.acquire("work", LeaseFacts())
    assert not other.acquire("work", LeaseFacts()) and other.acquire("something else", LeaseFacts())
    assert one.holder("work") is None and other.holder("work").facts == LeaseFacts(end=3)
    assert [lease.name for lease in other.others()] == ["work"]
    one.release("work")
    assert other.holder("work") is None and other.acquire("work", LeaseFacts())
    one.close()
    other.close()
    assert Store(storage).files.names("leases") == Store(storage).files.names("owners") == []


def test_of_many_simultaneous_owners_exactly_one_gets_the_lease(storage):
    owners = [leases(storage) for _ in range(6)]
    for round in range(3):
        with ThreadPoolExecutor(6) as pool:
            got = list(pool.map(lambda mine: mine.acquire(f"work{round}", LeaseFacts()), owners))  # noqa: B023
        assert sum(got) == 1
    for mine in owners:
        mine.close()


def test_a_living_owner_keeps_its_lease(storage, owner):
    mine = leases(storage)
    until = time.monotonic() + 2 * DEAD_S
    while time.monotonic() < until:
        assert not mine.acquire("work", LeaseFacts())
        time.sleep(0.1)


def test_the_lease_of_a_killed_owner_is_taken_over_within_the_bound(storage, owner):
    mine = leases(storage)
    assert not mine.acquire("work", LeaseFacts())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    take(mine, DEAD_S + 2)
    mine.close()


def test_the_lease_of_an_owner_without_heartbeat_is_taken_over(storage, owner):
    mine, later = leases(storage), leases(storage)
    assert not mine.acquire("work", LeaseFacts())
    os.kill(owner.pid, signal.SIGSTOP)
    take(mine, DEAD_S + 2)
    assert not later.acquire("work", LeaseFacts())
    mine.close()


def test_a_lease_that_the_storage_writes_after_it_was_given_back_is_deleted(storage):
    mine, other = leases(storage), leases(storage)
    files = Store(storage).files
    for name in ("kept", "late"):
        mine.acquire(name, LeaseFacts("train", 0, 10))
    (late,) = [f"leases/{name}" for name in files.names("leases") if name.startswith("late")]
    content = files.read(late)
    mine.release("late")
    files.write(late, content)
    assert other.holder("late")
    assert list(mine.others()) == [] and not other.holder("late")
    assert other.holder("kept").begin == 0
    mine.close(), other.close()


def test_a_damaged_lease_has_no_owner(tmp_path):
    storage = str(tmp_path / "store")
    one, other = leases(storage), leases(storage)
    assert one.acquire("work", LeaseFacts())
    next((tmp_path / "store" / "generations" / "work").iterdir()).write_text("{torn")
    assert other.acquire("work", LeaseFacts())
    one.close()
    other.close()
