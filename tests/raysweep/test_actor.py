"""The dispatcher's actor: any number of trials may wait, and a restarted actor reads nothing before it answers."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.execution import actor as dispatcher_actor
from raysweep.execution.actor import call
from raysweep.execution.tasks import Tally
from raysweep.space.launch import Launch
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, ProbeSpec, Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TRIALS = 1100


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=50)
    yield
    ray.shutdown()


def start(folder: Path, trials: int):
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return dispatcher_actor.start(Store(str(folder)), [10], Launch(concurrent_trials=trials), trials, here)


def run_of(seed: int) -> Run:
    phases = [Phase(until=40, term=NoTerm())]
    return Run(backbone="SiT-T/2", data="emoji9", batch_size=4, seed=seed, phases=phases)


def test_lanes_are_answered_however_many_trials_wait(cluster, tmp_path):
    actor = start(tmp_path / "store", TRIALS)
    waiting = [actor.dispatcher.remote("reach", run_of(seed), 10, str(seed)) for seed in range(TRIALS)]
    probe = ProbeSpec(detector="effnet_lite0", samples=10)
    waiting += [actor.dispatcher.remote("probe", run_of(seed), 10, probe, str(seed)) for seed in range(TRIALS)]
    waiting += [actor.dispatcher.remote("replay", run_of(seed), 10) for seed in range(TRIALS)]
    assert isinstance(call(actor, "pool", "next", 0, 60.0, timeout_s=120), list)
    ray.get(actor.pool.remote("lane_lost", 0, "the end"), timeout=60)
    ray.kill(actor)
    del waiting


def test_a_restarted_actor_answers_before_it_reads_the_storage(cluster, tmp_path):
    actor = start(tmp_path / "store", 8)
    assert ray.get(actor.pool.remote("status"), timeout=60).activity.computed_steps == 0
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)
    checkpoints = tmp_path / "store" / "checkpoints"
    checkpoints.parent.mkdir(exist_ok=True)
    checkpoints.write_text("no folder")  # to list it would fail
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while call(actor, "pool", "status", timeout_s=30).activity.notes != ["the dispatcher died and was restarted"]:
        assert time.monotonic() < until
    call(actor, "pool", "next", 0, 0.1, Tally("of one process", 30), timeout_s=30)
    call(actor, "pool", "next", 0, 0.1, Tally("of one process", 30), timeout_s=30)
    call(actor, "pool", "next", 1, 0.1, Tally("of another", 12), timeout_s=30)
    assert call(actor, "pool", "status", timeout_s=30).activity.computed_steps == 42
    ray.kill(actor)
