"""`ray up` to `ray down` on three hosts: a sweep over two of them, a link cut, the head lost. In this order.

The first test and the last are its short form. Timeouts allow for a machine whose two cores are busy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docs.pages import DOCS, commands

from raysweep.store.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

SWEEP = "python -m raysweep.run search_spaces/table5.yaml --profile smoke --set search.trials=4 --json"
SPREAD = " --set launch.placement_strategy=STRICT_SPREAD"
LONG = " --set trial.iterations=3000000"  # 60 steps a trial: long enough for a fault to hit one
ENDLESS = " --set trial.iterations=160000000000"


def command(storage: Path, more: str = "") -> str:
    return f"cd raysweep && {SWEEP}{SPREAD}{more} --storage {storage}"


def ray_exec(cluster, line: str, timeout: float = 900) -> str:
    return cluster.laptop("ray", "exec", str(cluster.file), line, timeout=timeout)


def result_of(output: str) -> dict:
    """The JSON object in what a sweep printed."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith('{"')), None)
    assert line, f"no JSON in:\n{output[-3000:]}"
    return json.loads(line)


def without_costs(result: dict) -> list:
    """A sweep's trials without what depends on the clock."""
    return [(t["trial"], t["params"], t["state"], t["steps"], t["metrics"]) for t in result["trials"]]


def until(happened: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, f"{what} took more than {timeout_s} s"
        time.sleep(0.5)


def workers_of(cluster) -> list[int]:
    """The number of workers on each host."""
    return [sum("RayTrainWorker" in line for line in cluster.processes(host)) for host in range(3)]


def hosts_with_workers(cluster) -> set[int]:
    return {host for host, workers in enumerate(workers_of(cluster)) if workers}


def checkpoints(storage: Path) -> list:
    return list(Store(str(storage)).checkpoints()) if storage.exists() else []


def interrupt(cluster) -> None:
    """Send SIGTERM to the driver on the head."""
    (pid,) = (line.split()[0] for line in cluster.processes(0) if " ".join(line.split()[1:]).startswith("python -m"))
    cluster.on(0, f"kill -TERM {pid}")


@pytest.fixture(scope="module")
def undisturbed(cluster) -> dict:
    return result_of(ray_exec(cluster, command(cluster.store / "undisturbed", LONG)))


def test_a_sweep_runs_over_two_hosts_and_a_shared_store(cluster, undisturbed):
    assert len(undisturbed["trials"]) == 4 and undisturbed["best"] is not None
    assert undisturbed["tracking_uri"] == "http://127.0.0.1:5000"


def test_the_doctor_accepts_the_cluster_and_names_a_storage_that_is_not_shared(cluster):
    def doctor(more: str) -> dict:
        output = ray_exec(cluster, f"cd raysweep && raysweep doctor --json {more} || true")
        return {check["name"]: check for check in json.loads(output[output.index("[{") : output.rindex("}]") + 2])}

    checks = doctor(f"--storage {cluster.store / 'undisturbed'}")
    assert {name for name, check in checks.items() if check["state"] == "wrong"} == set(), checks
    assert checks["token"]["found"] == "on" and "GB/s between 3 nodes, by gloo" in checks["all-reduce"]["found"]
    own = doctor("--storage ~/only-here")  # each host has a home folder of its own
    assert own["storage"]["state"] == "wrong" and own["storage"]["remedy"]


@contextlib.contextmanager
def forwarding(cluster, line: str, port: int) -> Iterator[None]:
    """A command of the user's that forwards a port of this machine until it is ended."""

    def answers() -> bool:
        assert process.poll() is None, f"{line} ended with {process.returncode}"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
        except urllib.error.HTTPError:
            return True  # Ray's dashboard asks for the token
        except OSError:
            return False
        return True

    process = cluster.started_on_laptop(*shlex.split(line))
    try:
        until(answers, 120, f"an answer on port {port}")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # and its ssh
        process.wait()


def test_the_commands_of_the_guide_run(cluster):
    """Those of docs/how-to/cluster.md that begin with `ray`, as they stand there, but for a sweep that fits."""
    storage = cluster.store / "guide"
    small = f"search_spaces/table5.yaml --profile smoke --set search.trials=1 --storage {storage}"
    lines = [line for line in commands(DOCS / "how-to/cluster.md") if line.startswith(("ray ", "RAY_AUTH_MODE"))]
    lines = [line.replace("search_spaces/table5.yaml", small) for line in lines]
    token, up, doctor, sweep, mlflow, dashboard, job = (
        line.replace("cluster.yaml", str(cluster.file)) for line in lines
    )
    assert token == "ray get-auth-token --generate" and up.startswith("ray up -y ")  # as the fixture did
    assert "all-reduce" in cluster.laptop(*shlex.split(doctor))
    cluster.laptop(*shlex.split(sweep))
    until(lambda: bool(list(storage.glob("studies/*/table.md"))), 400, "the sweep in tmux")
    with forwarding(cluster, mlflow, 5000):
        pass
    with forwarding(cluster, dashboard, 8265):
        output = cluster.laptop("bash", "-c", job)
    assert "succeeded" in output and " 0 computed now" in output, output


@pytest.mark.parametrize(("ranks", "spread"), [(1, "PACK"), (2, "STRICT_PACK"), (4, "SPREAD")])
def test_ranks_and_hosts_give_the_same_losses_to_rounding(cluster, undisturbed, ranks, spread):
    """Compared with two ranks on two hosts. Four ranks take two hosts as well: each has two CPUs."""
    storage = cluster.store / f"ranks{ranks}"
    options = f" --set search.trials=1 --set launch.workers={ranks} --set launch.placement_strategy={spread}"
    ray_exec(cluster, f"cd raysweep && {SWEEP}{LONG}{options} --storage {storage}")
    expected = {stored.key: stored.manifest.training.curve for stored in checkpoints(cluster.store / "undisturbed")}
    manifests = {stored.key: stored.manifest for stored in checkpoints(storage)}
    assert manifests and set(manifests) <= set(expected)
    for key, manifest in manifests.items():
        assert manifest.training.platform.workers == ranks
        for mine, theirs in zip(manifest.training.curve, expected[key], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3), (key, mine, theirs)


def test_a_lane_shrinks_when_a_host_is_lost_and_grows_when_it_is_back(cluster, tmp_path):
    """The trial never ends and is interrupted: how many steps six workers do on this machine's cores in the time that
    the host is away cannot be known."""
    storage, log = cluster.store / "elastic", tmp_path / "elastic.log"
    elastic = " --set search.trials=1 --set launch.workers=[1,6]"  # six is all CPUs that three hosts have
    line = f"cd raysweep && {SWEEP}{ENDLESS}{elastic} --set launch.checkpoint_every_s=5 --storage {storage}"
    driver = cluster.started_on(0, f"bash -ic {shlex.quote(line)}", log)

    def committed_by(workers: int, after: int = 0) -> int:
        """The last step of which that many workers committed a checkpoint."""
        assert driver.poll() is None, log.read_text()[-3000:]
        steps = (stored.step for stored in checkpoints(storage) if stored.manifest.training.platform.workers == workers)
        return max((step for step in steps if step > after), default=0)

    until(lambda: workers_of(cluster) == [2, 2, 2], 400, "six workers")
    until(lambda: committed_by(6) > 0, 300, "the first checkpoint")
    cluster.power_off(2)
    until(lambda: committed_by(4) > 0, 500, "a checkpoint of four workers")
    shrunk = committed_by(4)
    cluster.boot(2)  # the autoscaler starts Ray on it again
    until(lambda: workers_of(cluster) == [2, 2, 2], 500, "six workers again")
    until(lambda: committed_by(6, after=shrunk) > 0, 300, "a checkpoint of six workers again")
    interrupt(cluster)
    assert driver.wait(timeout=300) == 130, log.read_text()[-3000:]
    until(lambda: not hosts_with_workers(cluster), 120, "the end of the workers")


def test_a_link_is_cut_and_the_head_is_lost_and_the_table_is_the_same(cluster, undisturbed, tmp_path):
    storage, log = cluster.store / "disturbed", tmp_path / "first.log"
    line = command(storage, f"{LONG} --set launch.timeout_s=30")  # the workers notice the cut in that time
    driver = cluster.started_on(0, f"bash -ic {shlex.quote(line)}", log)
    until(lambda: checkpoints(storage) and len(hosts_with_workers(cluster)) == 2, 400, "the first checkpoint")
    victim = max(hosts_with_workers(cluster))  # never the head: the driver would lose its cluster
    cluster.cut(victim)
    before = len(checkpoints(storage))
    time.sleep(30)
    cluster.mend(victim)
    until(lambda: len(checkpoints(storage)) > before, 500, "the first checkpoint after the cut")
    assert driver.poll() is None, log.read_text()[-3000:]

    cluster.power_off(0)
    driver.wait(timeout=60)
    cluster.boot(0)
    cluster.up()
    again = result_of(ray_exec(cluster, line))
    assert without_costs(again) == without_costs(undisturbed)
    assert again["steps"]["computed"] < undisturbed["steps"]["computed"]


def test_nothing_is_left_after_ray_down(cluster):
    cluster.laptop("ray", "down", "-y", str(cluster.file))
    until(
        lambda: not any("ray" in line for host in range(3) for line in cluster.processes(host)), 300, "the end of Ray"
    )
