"""Whole sweeps on a real Ray, a real Optuna and a real MLflow: what a user types, and what is there afterwards."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from chaos.harness import Sweep, traces
from mlflow.tracking import MlflowClient

from raysweep.store.records import FailureRecord
from raysweep.store.store import Store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

TWO_AXES = """\
study: two-axes
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 30.0], default: 30.0}
    stop: {choice: [100000, 200000], default: 100000}
    teacher: {method: {choice: [vae_align, repa]}, iterations: {choice: [100000, 200000], default: 200000}}
search: {rungs: [100000, 200000], trials: 6, scheduler: {kind: asha, noise: paired, level: 0.6}}
launch: {concurrent_trials: 2}
enqueue:
  - {set: {}, fid: 22.91, is: 70.37}
  - {set: {method.guidance_scale: 1.0}, fid: 29.30, is: 55.68}
  - {set: {method.stop: 200000}}
  - {set: {method.teacher.iterations: 100000}, fid: 25.20}
  - {set: {method.teacher.method: repa}, fid: 23.40}
  - {set: {method.guidance_scale: 30.0}, fid: 22.91}
"""

NO_ENCODER = ("--set", "trial.encoder.kind=dinov2")  # the row that looks up to one is then unavailable

NO_TEACHERS = """\
study: plain
trial:
  iterations: 200000
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}, weight_decay: {choice: [0.0, 1.0e+38], default: 0.0}}
  method: {choice: [none, repa, {kind: sra, weight: {steps: [0, 100000], weights: [1.0, 0.1]}}]}
search: {rungs: [100000], trials: 4}
launch: {workers: 1, concurrent_trials: 2}
enqueue:
  - {set: {}}
  - {set: {method: sra}}
  - {set: {optimizer.weight_decay: 1.0e+38}}
"""


def command(space: Path, storage: Path, *more: str) -> list[str]:
    relative = os.path.relpath(storage, ROOT)  # as users give it; workers have other working directories
    module = [sys.executable, "-m", "raysweep.run", str(space), "--profile", "smoke", "--storage", relative]
    return [*module, "--json", *more]


def sweep(space: Path, storage: Path, *more: str) -> dict:
    ended = subprocess.run(command(space, storage, *more), cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr and "Warning" not in ended.stderr, ended.stderr[-3000:]
    return json.loads(ended.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def root(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "runs").mkdir()
    (folder / "runs" / "cache").symlink_to(cache)  # what other tests have encoded already
    return folder


@pytest.fixture(scope="module")
def first(root) -> dict:
    (root / "space.yaml").write_text(TWO_AXES)
    return sweep(root / "space.yaml", root / "runs", *NO_ENCODER)


@pytest.fixture(scope="module")
def mlflow_runs(first):
    client = MlflowClient(tracking_uri=first["tracking_uri"])
    experiment = client.get_experiment_by_name(first["study"])
    return client, client.search_runs([experiment.experiment_id])


def test_every_step_is_accounted_for_and_teachers_are_trained_once(first, root):
    steps = first["steps"]
    assert steps["computed"] + steps["reused"] == steps["without_sharing"]
    assert steps["without_sharing"] == sum(
        t["steps"] + (t["teacher_steps"] if t["steps"] else 0) for t in first["trials"]
    )
    committed = list(Store(first["storage"]).checkpoints())
    assert steps["computed"] == sum(stored.step - stored.manifest.training.from_step for stored in committed)
    terms = Counter(
        (stored.step, stored.manifest.history["phases"][0]["term"]["kind"])
        for stored in committed
        if stored.manifest.history["phases"][0]["term"]["kind"] == "vae_align"
    )
    assert set(terms.values()) == {1}
    assert steps["reused"] > 0


def test_the_rows_are_all_there_with_reasons(first):
    trials = first["trials"]
    assert [t["row"] for t in trials[:6]] == [1, 2, 3, 4, 5, 6]
    assert trials[4]["state"] == "UNAVAILABLE" and trials[4]["steps"] == 0
    assert trials[5]["repeats"] == 0 and trials[5]["metrics"] == trials[0]["metrics"]
    assert all(t["reason"] for t in trials) and {t["state"] for t in trials} >= {"COMPLETE", "PRUNED"}
    assert first["metric"] == "fd_effnet_18"
    complete = [t for t in trials if t["state"] == "COMPLETE"]
    assert first["best"]["metrics"][first["metric"]] == min(t["metrics"][first["metric"]] for t in complete)


def test_pruned_trials_were_shown_to_be_worse(first, mlflow_runs):
    client, runs = mlflow_runs
    tags = {int(r.data.tags["raysweep.trial"]): r.data.tags for r in runs if r.data.tags["raysweep.kind"] == "trial"}
    seen = set()
    for trial in first["trials"]:
        for decision in trial["decisions"] if trial["repeats"] is None else []:
            compared = decision["difference"] is not None
            seen.add((compared, decision["go_on"]))
            assert compared or decision["go_on"]
            assert not compared or decision["go_on"] == (decision["difference"] <= 0.2534 * decision["error"])
            tag = tags[trial["trial"]][f"raysweep.decision.{decision['step']}"]
            assert tag.startswith("goes on" if decision["go_on"] else "stopped") and ("±" in tag) == compared
    assert {(False, True), (True, False)} <= seen


def test_two_stops_of_one_configuration_share_their_first_steps(first):
    one, other = first["trials"][0], first["trials"][2]
    assert one["probes"][0] == other["probes"][0]  # the rung before the earlier stop: the very same checkpoint


def test_mlflow_has_a_run_per_trial_and_per_teacher_with_its_lineage(first, mlflow_runs):
    client, runs = mlflow_runs
    by_kind = {
        kind: [r for r in runs if r.data.tags["raysweep.kind"] == kind] for kind in ("sweep", "trial", "teacher")
    }
    assert [len(by_kind[kind]) for kind in by_kind] == [1, len(first["trials"]), 1]
    parent, teacher = by_kind["sweep"][0].info.run_id, by_kind["teacher"][0]
    for run in by_kind["trial"]:
        trial = first["trials"][int(run.data.tags["raysweep.trial"])]
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.tags["raysweep.state"] == trial["state"]
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "UNAVAILABLE": "KILLED"}[trial["state"]]
        if trial["state"] == "UNAVAILABLE":
            continue
        assert run.data.tags["raysweep.history_key"] == trial["history_key"]
        assert run.data.tags["raysweep.teacher_key"] == trial["teacher_key"]
        assert run.data.tags["raysweep.teacher_run_id"] == teacher.info.run_id
        step = run.data.tags["raysweep.teacher_step"]
        assert teacher.data.tags[f"raysweep.history_key.{step}"] == trial["teacher_key"]
        assert run.data.params["method.guidance_scale"] == str(trial["params"]["method.guidance_scale"])
        assert run.data.metrics[first["metric"]] == pytest.approx(trial["metrics"][first["metric"]])
        history = client.get_metric_history(run.info.run_id, "loss")
        assert max(point.step for point in history) == trial["steps"] and min(point.step for point in history) == 1
        images = [a.path for a in client.list_artifacts(run.info.run_id, "images")]
        assert sum(path.endswith(".png") for path in images) >= len(trial["probes"])
        assert "run.json" in [a.path for a in client.list_artifacts(run.info.run_id)]
    assert {"space.yaml", "table.md", "plot.png"} <= {a.path for a in client.list_artifacts(parent)}
    assert "loss" in teacher.data.metrics


def test_tables_and_a_plot_lie_beside_the_journal(first):
    folder = Path(first["storage"]) / "studies" / first["study"]
    table = (folder / "table.md").read_text()
    assert "published fid_10k" in table and "22.91" in table and "needs DINOv2" in table
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + len(first["trials"])
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_optuna_s_study_is_there_for_its_dashboard(first):
    path = Path(first["storage"]) / "studies" / first["study"] / "optuna.db"
    study = optuna.load_study(study_name=first["study"], storage=f"sqlite:///{path}")
    states = Counter(trial.state.name for trial in study.trials)
    reported = Counter(t["state"] for t in first["trials"])
    assert (states["COMPLETE"], states["PRUNED"], states["RUNNING"]) == (reported["COMPLETE"], reported["PRUNED"], 0)


def test_the_same_command_again_computes_nothing_and_answers_the_same(first, root, mlflow_runs):
    """Optuna's file is damaged before: it is a view, made again from the journal."""
    client, runs = mlflow_runs
    optuna_file = Path(first["storage"]) / "studies" / first["study"] / "optuna.db"
    optuna_file.write_bytes(b"not a database")
    again = sweep(root / "space.yaml", root / "runs", *NO_ENCODER)
    assert again["steps"]["computed"] == 0
    assert again["trials"] == first["trials"] and again["best"] == first["best"]
    assert len(client.search_runs([runs[0].info.experiment_id])) == len(runs)
    study = optuna.load_study(study_name=first["study"], storage=f"sqlite:///{optuna_file}")
    assert sum(trial.state.name == "COMPLETE" for trial in study.trials) == sum(
        trial["state"] == "COMPLETE" for trial in first["trials"]
    )


def test_the_report_comes_from_the_store_alone(first, root):
    report = [sys.executable, "-m", "raysweep", "report", "two-axes", "--storage", str(root / "runs")]
    shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and f"Best: trial {first['best']['trial']}" in shown.stdout
    unknown = subprocess.run([*report[:4], "nothing", *report[5:]], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2 and "two-axes" in unknown.stderr


def test_the_driver_is_preempted_and_the_same_command_carries_on(root, first):
    """Another space of the same form: one worker, a range, no teachers. MLflow's file is damaged in between. (What
    SIGKILL does to each kind of process: tests/chaos.)"""
    (root / "plain.yaml").write_text(NO_TEACHERS)
    plain = Sweep(root / "plain.yaml", root / "runs")
    plain.start()
    journal = root / "runs" / "studies"
    deadline = time.monotonic() + 300
    while not any("probed" in path.read_text() for path in journal.glob("plain-*/journal/*")):
        assert time.monotonic() < deadline and plain.running, f"no probe in five minutes\n{plain.errors}"
        time.sleep(0.2)
    plain.driver.send_signal(signal.SIGTERM)
    assert plain.driver.wait(60) == 130 and plain.left_behind() == {}
    assert "run the same command again to continue" in plain.errors and "Traceback" not in plain.errors
    assert traces(root / "runs") == []
    database = root / "runs" / "mlflow.db"
    database.write_bytes(database.read_bytes()[:5000])
    plain.start()
    ended = plain.result()
    assert ended["steps"]["reused"] > 0
    diverged = ended["trials"][2]
    assert diverged["state"] == "FAILED" and "not finite" in diverged["reason"]
    failures = root / "runs" / "records" / "failures"
    records = [Store(str(root / "runs")).record(FailureRecord, path.stem) for path in failures.glob("*.json")]
    assert records and all({"loss", "grad_norm"} <= set(record.terms) for record in records)
    assert {t["state"] for t in ended["trials"][:2]} <= {"COMPLETE", "PRUNED"}
    assert [t["teacher_key"] for t in ended["trials"]] == [None] * 4
    assert all(1e-4 <= t["params"]["optimizer.lr"] <= 1e-2 for t in ended["trials"])
    with contextlib.closing(sqlite3.connect(database)) as mirror:
        counted = mirror.execute("SELECT count(*) FROM tags WHERE key = 'raysweep.kind' AND value = 'trial'").fetchone()
    assert counted == (len(ended["trials"]),)
