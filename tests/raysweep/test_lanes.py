"""Lanes on a cluster wait for resources; a process group that cannot be formed is tried again, and not for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from raysweep.cluster.connection import PlacementRequest, connected, shortage
from raysweep.cluster.network import NAMED, choose_interface, interface_of
from raysweep.execution.lanes import Lanes
from raysweep.space.launch import Launch
from raysweep.space.space import load
from raysweep.store.store import Store

ROOT = Path(__file__).parents[2]
# In a worker that `RAYSWEEP_TEST_BROKEN` allows to, gloo is given an interface that does not exist.
BROKEN = """
import os, sys
folder = os.environ.get("RAYSWEEP_TEST_BROKEN")
if folder and "default_worker.py" in " ".join(getattr(sys, "orig_argv", [])):
    if not os.path.exists(os.path.join(folder, "mended")):
        os.environ["GLOO_SOCKET_IFNAME"] = "none0"
"""


@pytest.fixture
def small_cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=50)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_request_is_granted_when_a_node_comes_up_and_not_before(small_cluster):
    launch = Launch(workers=(2, 4), placement_strategy="STRICT_SPREAD")
    request = PlacementRequest(launch)
    time.sleep(1)
    assert not request.granted()
    assert shortage(launch) == (
        "needs 2 workers with 1 CPU each, placed STRICT_SPREAD; the cluster has 1 CPU, used or free, on 1 node"
    )
    small_cluster.add_node(num_cpus=1)
    until = time.monotonic() + 30
    while not request.granted():
        assert time.monotonic() < until
        time.sleep(0.2)
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2:  # it keeps nothing
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_interface_is_that_of_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
    assert all(interface_of("127.0.0.1") in dict(map(reversed, socket.if_nameindex())) for _ in NAMED)


def test_the_interface_that_the_user_has_set_stays(monkeypatch):
    for name in NAMED:
        monkeypatch.setenv(name, "mine")
    choose_interface()
    assert all(os.environ[name] == "mine" for name in NAMED)


@pytest.mark.ray
@pytest.mark.slow
def test_a_lane_is_not_ended_while_its_workers_are_starting(tmp_path, cache):
    """They say nothing before they have started, which takes longer than twice `timeout_s` here."""
    (tmp_path / "cache").symlink_to(cache)
    space = load(ROOT / "search_spaces/table5.yaml", "smoke", {"launch.timeout_s": 1})
    with connected(space.launch, "local"):
        reference = (space.trial({})[0].data, space.probe)
        lanes = Lanes(space.launch, Store(str(tmp_path)), [], reference, alone=True)
        until = time.monotonic() + 120
        while not ray.get(lanes.actor.pool.remote("status")).groups:  # of workers that have started
            assert time.monotonic() < until
            assert lanes.activity().notes == []
            time.sleep(0.5)
        lanes.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("mends", [True, False])
def test_a_process_group_that_cannot_be_formed_is_tried_again_and_not_for_ever(mends, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    code = f"""
import sys
from raysweep import run
from raysweep.execution import lanes
lanes.STARTS = {5 if mends else 2}
sys.exit(run.main(sys.argv[1:]))
"""
    arguments = ["search_spaces/table5.yaml", "--profile", "smoke", "--set", "search.trials=1", "--address", "local"]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "RAYSWEEP_TEST_BROKEN": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--storage", str(tmp_path / "runs")],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            if mends:
                until = time.monotonic() + 120
                while b"starts again" not in (tmp_path / "log").read_bytes():
                    assert time.monotonic() < until and process.poll() is None
                    time.sleep(0.5)
                (tmp_path / "mended").touch()
            ended = process.wait(timeout=240)
        finally:
            process.kill()
    output = (tmp_path / "log").read_text()
    assert "Traceback" not in output
    if mends:
        assert ended == 0 and "Best: trial 0" in output
    else:
        assert ended == 1 and "no lane is left" in output and "the same command carries on" in output
