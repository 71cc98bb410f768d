"""`ray up` to `ray down` on three hosts: a sweep over two of them, a link cut, the head lost. In this order."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raysweep.store.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SWEEP = "python -m raysweep.run search_spaces/table5.yaml --profile smoke --set search.trials=4 --json"
SPREAD = " --set launch.placement_strategy=STRICT_SPREAD --set launch.timeout_s=20"
LONG = " --set trial.iterations=3000000"  # 60 steps a trial, so that there is something to cut


def command(storage: Path, more: str = "") -> str:
    return f"cd raysweep && {SWEEP}{SPREAD}{more} --storage {storage}"


def exec_(cluster, told: str, timeout: float = 600) -> str:
    return cluster.laptop("ray", "exec", str(cluster.file), told, timeout=timeout)


def result_of(output: str) -> dict:
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith('{"')))


def numbers(result: dict) -> list:
    """What the table holds, without what depends on the clock."""
    return [(t["trial"], t["params"], t["state"], t["steps"], t["metrics"]) for t in result["trials"]]


def until(happened: Callable[[], bool], patience_s: float, what: str) -> None:
    end = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < end, f"{what} took more than {patience_s} s"
        time.sleep(0.5)


def workers_of(cluster) -> list[int]:
    """How many each host has."""
    return [sum("RayTrainWorker" in line for line in cluster.processes(host)) for host in range(3)]


def workers_on(cluster) -> set[int]:
    return {host for host, workers in enumerate(workers_of(cluster)) if workers}


def published(storage: Path) -> int:
    return len(list(Store(str(storage)).published())) if storage.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(cluster) -> dict:
    return result_of(exec_(cluster, command(cluster.store / "undisturbed", LONG)))


def test_a_sweep_runs_over_two_hosts_and_a_shared_store(cluster, undisturbed):
    assert len(undisturbed["trials"]) == 4 and undisturbed["best"] is not None
    assert undisturbed["tracking_uri"] == "http://127.0.0.1:5000"


def test_the_doctor_finds_nothing_wrong_and_then_what_is(cluster):
    def look(more: str) -> dict:
        told = exec_(cluster, f"cd raysweep && raysweep doctor --json {more} || true")
        return {check["name"]: check for check in json.loads(told[told.index("[{") : told.rindex("}]") + 2])}

    checks = look(f"--storage {cluster.store / 'undisturbed'}")
    assert {name for name, check in checks.items() if check["state"] == "wrong"} == set(), checks
    assert checks["token"]["found"] == "on" and "GB/s between 3 nodes, by gloo" in checks["all-reduce"]["found"]
    own = look("--storage ~/only-here")  # a home folder is the host's own
    assert own["storage"]["state"] == "wrong" and own["storage"]["remedy"]


@pytest.mark.parametrize(("ranks", "spread"), [(1, "PACK"), (2, "STRICT_PACK"), (4, "SPREAD")])
def test_ranks_and_hosts_give_the_same_losses_to_rounding(cluster, undisturbed, ranks, spread):
    """Against two ranks on two hosts. Four ranks take two hosts too: each has two CPUs."""
    storage = cluster.store / f"ranks{ranks}"
    options = f" --set search.trials=1 --set launch.workers={ranks} --set launch.placement_strategy={spread}"
    exec_(cluster, f"cd raysweep && {SWEEP}{LONG}{options} --storage {storage}")
    expected = {found.key: found.manifest["curve"] for found in Store(str(cluster.store / "undisturbed")).published()}
    found = {found.key: found.manifest for found in Store(str(storage)).published()}
    assert found and set(found) <= set(expected)
    for key, manifest in found.items():
        assert manifest["workers"] == ranks
        for mine, theirs in zip(manifest["curve"], expected[key], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3), (key, mine, theirs)


@pytest.mark.timeout(1800)
def test_a_lane_shrinks_when_a_host_is_lost_and_grows_when_it_is_back(cluster, tmp_path):
    elastic = " --set search.trials=1 --set launch.workers=[1,6]"  # all CPUs that three hosts have
    elastic += " --set launch.checkpoint_every_s=5 --set trial.iterations=160000000"  # 3,200 steps
    told = f"cd raysweep && {SWEEP} {elastic} --storage {cluster.store / 'elastic'}"
    driver = cluster.started_on(0, f"bash -ic {shlex.quote(told)}", tmp_path / "elastic.log")
    until(lambda: workers_of(cluster) == [2, 2, 2], 180, "six workers")
    until(lambda: published(cluster.store / "elastic") > 0, 180, "the first checkpoint")
    cluster.power_off(2)
    cluster.boot(2)  # the autoscaler starts Ray on it again
    until(lambda: workers_of(cluster) == [2, 2, 0], 240, "four workers")
    until(lambda: workers_of(cluster) == [2, 2, 2], 300, "six workers again")
    assert driver.wait(timeout=900) == 0, (tmp_path / "elastic.log").read_text()[-3000:]
    (last,) = (found for found in Store(str(cluster.store / "elastic")).published() if found.step == 3200)
    assert last.manifest["workers"] == 6


def test_a_link_is_cut_and_the_head_is_lost_and_the_table_is_the_same(cluster, undisturbed, tmp_path):
    storage = cluster.store / "disturbed"
    told = shlex.quote(command(storage, LONG))
    driver = cluster.started_on(0, f"bash -ic {told}", tmp_path / "first.log")
    until(lambda: published(storage) > 0 and len(workers_on(cluster)) == 2, 180, "the first checkpoint")
    victim = max(workers_on(cluster))  # never the head, whose link the driver's fate hangs on
    cluster.cut(victim)
    before = published(storage)
    time.sleep(30)
    cluster.mend(victim)
    until(lambda: published(storage) > before, 240, "the first checkpoint after the cut")
    assert driver.poll() is None, (tmp_path / "first.log").read_text()[-3000:]

    cluster.power_off(0)
    driver.wait(timeout=60)
    cluster.boot(0)
    cluster.up()
    again = result_of(exec_(cluster, command(storage, LONG)))
    assert numbers(again) == numbers(undisturbed)
    assert again["steps"]["computed"] < undisturbed["steps"]["computed"]


def test_nothing_is_left_after_ray_down(cluster):
    cluster.laptop("ray", "down", "-y", str(cluster.file))
    until(
        lambda: not any("ray" in line for host in range(3) for line in cluster.processes(host)), 150, "the end of Ray"
    )
