"""Every kind of process is killed at every kind of moment, and the sweep's result stays the same. Long: `make chaos`.

`test_each_kind_of_process_is_killed_once` is its short form.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness import MOMENTS, SPACE, Sweep, hashes, table, traces, trials_without_costs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def root(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def start(root, cache):
    """Start a sweep with a store of its own. What a failed test has left running is killed."""
    started = []

    def begin(name: str, *more: str) -> Sweep:
        storage = root / name
        storage.mkdir(exist_ok=True)
        if not (storage / "cache").exists():
            (storage / "cache").symlink_to(cache)
        sweep = Sweep(root / "space.yaml", storage, *more)
        sweep.start()
        started.append(sweep)
        return sweep

    yield begin
    for sweep in started:
        sweep.kill_all()


@pytest.fixture(scope="module")
def undisturbed(start):
    sweep = start("undisturbed")
    result = sweep.result()
    assert not sweep.left_behind() and not traces(sweep.storage)
    return result, hashes(sweep.storage), table(sweep.storage)


def check_same(sweep: Sweep, undisturbed) -> None:
    result, checkpoints, rows = undisturbed
    assert trials_without_costs(sweep.result()) == trials_without_costs(result)
    assert hashes(sweep.storage) == checkpoints
    assert table(sweep.storage) == rows
    assert sweep.left_behind() == {}
    assert traces(sweep.storage) == []
    assert "Traceback" not in sweep.errors


def test_each_kind_of_process_is_killed_once(start, undisturbed):
    sweep = start("once")
    moments = {"dispatcher": "teacher", "host": "student", "worker": "probe", "driver": "student"}
    for role, moment in moments.items():
        sweep.wait_for(moment, role)
        assert sweep.kill(role)
    sweep.start()
    check_same(sweep, undisturbed)


@pytest.mark.parametrize("role", ["worker", "trial", "controller", "dispatcher", "host"])
def test_a_process_is_killed_at_each_moment(role, start, undisturbed):
    sweep = start(role)
    for moment in MOMENTS:
        sweep.wait_for(moment, role)
        assert sweep.kill(role)
        time.sleep(0.5)
    check_same(sweep, undisturbed)


def test_the_driver_is_killed_at_each_moment(start, undisturbed):
    sweep = start("driver")
    for moment in MOMENTS:
        sweep.wait_for(moment, "driver")
        assert sweep.kill("driver")
        sweep.start()  # at once, while the processes of the dead driver are still ending
    check_same(sweep, undisturbed)


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int, wait: bool = True) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while wait:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < until and server.poll() is None
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_mlflow_server_is_killed_at_each_moment(start, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(mlflow_server(tmp_path, port))
        sweep = start("mlflow", "--tracking-uri", f"http://127.0.0.1:{port}")
        for moment in MOMENTS:
            sweep.wait_for(moment, "driver")
            os.killpg(server.pid, signal.SIGKILL)
            time.sleep(1)
            server = servers.enter_context(mlflow_server(tmp_path, port, wait=False))  # the sweep does not wait either
        sweep.result()
        if "is not up to date" in sweep.errors:  # the server started late
            sweep.start()
        check_same(sweep, undisturbed)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name(sweep.result()["study"])
        logged = [
            run.data.tags
            for run in client.search_runs([experiment.experiment_id])
            if run.data.tags["raysweep.kind"] == "trial"
        ]
        states = {int(tags["raysweep.trial"]): tags["raysweep.state"] for tags in logged}
        assert len(logged) == len(states) == len(undisturbed[0]["trials"])
        assert states == {trial["trial"]: trial["state"] for trial in undisturbed[0]["trials"]}


def test_a_node_is_killed_at_each_moment(start, undisturbed, monkeypatch):
    """The second of two nodes, where the workers are; a new one takes its place after each death."""
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=2)
        sweep = start("node", "--address", cluster.address)
        for moment in MOMENTS:
            sweep.wait_for(moment, "driver")
            raylet = node.all_processes["raylet"][0].process
            os.kill(raylet.pid, signal.SIGKILL)
            raylet.wait()
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=2)
        check_same(sweep, undisturbed)
        ray.init(address=cluster.address, log_to_driver=False)
        groups = ray.util.placement_group_table().values()
        assert all(group["state"] == "REMOVED" for group in groups)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_twenty_random_kills_in_one_sweep(start, undisturbed):
    chance = random.Random(5)
    sweep = start("random")
    killed: list[str] = []
    while len(killed) < 20 and sweep.running:
        time.sleep(chance.uniform(1, 8))
        role = chance.choice(["worker", "worker", "trial", "controller", "dispatcher", "host", "driver"])
        if not sweep.running or not sweep.kill(role, chance.choice):
            continue
        killed.append(role)
        if role == "driver":
            sweep.start()
    print(json.dumps({"killed": killed, "starts": sweep.starts}))
    check_same(sweep, undisturbed)
    assert len(killed) == 20, "the sweep was over before that"


def test_of_two_drivers_on_one_study_the_second_waits(start, undisturbed):
    first = start("two")
    first.wait_for("teacher", "driver")
    second = start("two")
    first_result = first.result()
    second_result = second.result()
    check_same(first, undisturbed)
    assert trials_without_costs(second_result) == trials_without_costs(first_result)
    assert "is being run by" in second.errors and second_result["steps"]["computed"] == 0
    assert second.left_behind() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_storage_that_fails_under_a_sweep_is_waited_for(fault, start, undisturbed, root):
    disk = root / fault  # the files of output and errors lie beside it
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", disk], check=True)
    try:
        sweep = start(fault)
        sweep.wait_for("student", "worker")
        if fault == "full":
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1 << 16))
        else:
            # The disk is mounted over itself: open databases would not let the disk itself become read-only.
            subprocess.run(["mount", "--bind", disk, disk], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        until = time.monotonic() + 120
        while "No space left" not in sweep.errors and "Read-only" not in sweep.errors:
            assert sweep.running and time.monotonic() < until, sweep.errors[-2000:]
            time.sleep(0.2)
        time.sleep(20)
        if fault == "full":
            (disk / "filler").unlink()
        else:
            subprocess.run(["umount", "-l", disk], check=True)
        check_same(sweep, undisturbed)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
