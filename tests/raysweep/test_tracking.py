"""What MLflow gets of a study: everything, once, and the same from a live mirror as from the store."""

import itertools
import json
import re
import subprocess
import sys
from typing import Any

import lanes
import pytest
from mlflow.tracking import MlflowClient
from servers import MlflowServer

from raysweep.commands import sync_mlflow
from raysweep.report import report
from raysweep.space import runs, space
from raysweep.store import history
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize
from raysweep.tracking import background
from raysweep.tracking.background import BackgroundMirror

TEXT = """\
study: mirrored
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 30.0], default: 30.0}
    stop: {choice: [200000, never], default: 200000}
    teacher: {method: vae_align, iterations: 200000}
search: {rungs: [100000, 200000], trials: 4, scheduler: {kind: asha, eta: 2}}
enqueue:
  - {set: {}, fid: 22.91, is: 70.37}
  - {set: {method.stop: never}}
  - {set: {method.guidance_scale: 1.0}, fid: 29.30}
  - {set: {method.guidance_scale: 30.0}}
"""
LOSSES = ("loss", "loss_diffusion", "loss_method", "grad_norm")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, cache) -> tuple[StudyState, str]:
    """A study that was mirrored while it ran, and the URI of its MLflow."""
    folder = tmp_path_factory.mktemp("mirrored")
    (folder / "space.yaml").write_text(TEXT)
    (folder / "runs").mkdir()
    (folder / "runs" / "cache").symlink_to(cache)
    study = StudyState(space.load(folder / "space.yaml", "smoke"), Store(str(folder / "runs")))
    study.record_driver({"git_commit": "c0ffee", "python": "3", "packages": {"torch": "2"}})
    uri = f"sqlite:///{folder / 'live.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "POLL_S", 0.05)  # so that running trials are logged too
        mirror = BackgroundMirror(study, uri, print)
        lanes.sweep(study, cache)
        assert mirror.finish(report.write(study, summarize(study)), study.best)
    return study, uri


def logged(uri: str, study: StudyState) -> dict[str, Any]:
    """All that an MLflow holds of a study, without the ids that MLflow chose."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study.space.id).experiment_id
    runs_there = [client.get_run(run.info.run_id) for run in client.search_runs([experiment], max_results=1000)]
    name = {run.info.run_id: run.data.tags["raysweep.identity"] for run in runs_there}
    models = {model.model_id: model for model in client.search_logged_models([experiment], max_results=100)}
    named = {key: model.name for key, model in models.items()}
    everything: dict[str, Any] = {}
    for run in runs_there:
        tags = {k: name.get(v, v) for k, v in run.data.tags.items() if k != "mlflow.loggedImages"}
        if "/runs/" in (note := tags.get("mlflow.note.content", "")):  # a link to a run, which must exist
            tags["mlflow.note.content"] = re.sub(r"#.*/runs/(\w+)", lambda link: name[link[1]], note)
        everything[name[run.info.run_id]] = {
            "tags": tags,
            "params": run.data.params,
            "times": (run.info.start_time, run.info.end_time, run.info.status, run.info.run_name),
            "metrics": {m: curve(client, run.info.run_id, m) for m in run.data.metrics},
            "files": sorted(files(client, run.info.run_id)),
            "data": [data.to_dictionary() for data in run.inputs.dataset_inputs],
            "from": sorted(named[model.model_id] for model in run.inputs.model_inputs),
            "made": sorted((named[model.model_id], model.step) for model in run.outputs.model_outputs),
        }
    everything["models"] = {
        model.name: (
            name[model.source_run_id],
            model.tags,
            model.params,
            str(model.status),
            sorted((m.key, m.value, m.step, name[m.run_id]) for m in model.metrics or []),
        )
        for model in models.values()
    }
    assert len(everything["models"]) == len(models) and len(everything) == len(runs_there) + 1
    return everything


def curve(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float, int]]:
    return sorted((point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, metric))


def files(client: MlflowClient, run_id: str, folder: str | None = None):
    for file in client.list_artifacts(run_id, folder):
        if file.is_dir:
            yield from files(client, run_id, file.path)
        else:  # the names of pictures contain a random number of MLflow's
            yield re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "", file.path)


def test_a_trial_s_run_says_all_of_it_in_the_words_of_the_yaml(swept):
    study, uri = swept
    everything = logged(uri, study)
    for trial in study.trials:
        run, it = study.run(trial), everything[f"trial {trial.number}"]
        assert it["params"]["method.guidance_scale"] == str(trial.point["method.guidance_scale"])
        assert it["params"]["method.teacher.iterations"] == "200000"
        assert it["tags"]["raysweep.state"] == trial.state and it["tags"]["raysweep.reason"] == trial.reason
        assert it["tags"]["mlflow.parentRunId"] == "sweep" and it["tags"]["mlflow.source.git.commit"] == "c0ffee"
        assert {f"raysweep.decision.{step}" for step in trial.decisions} <= set(it["tags"])
        assert it["tags"]["raysweep.history_key"] == history.key(run, trial.step)
        for metric in LOSSES:  # the whole curve, even if another trial trained the first steps
            steps = [step for step, _, _ in it["metrics"][metric]]
            assert steps[0] == 1 and steps[-1] == trial.step and len(set(steps)) == len(steps)
        assert {"steps_per_s", "memory_mib"} <= set(it["metrics"])
        for name in study.space.probe.reported:
            if name in trial.probes[trial.step]:
                assert [(s, v) for s, v, _ in it["metrics"][name]] == [
                    (step, metrics[name]) for step, metrics in sorted(trial.probes.items())
                ]
        pictures = [file for file in it["files"] if file.startswith("images/samples") and file.endswith(".png")]
        assert sorted(int(file.split("+")[2]) for file in pictures) == sorted(trial.probes)
        began, ended, _, _ = it["times"]
        assert began == round(trial.proposed_at * 1000) and ended == round(trial.ended_at * 1000)
        assert it["data"][0]["dataset"]["name"] == "emoji9"
        assert re.search(r"Taught by \[teacher vae_align .* step 4\]\(teacher ", it["tags"]["mlflow.note.content"])


def test_checkpoints_are_models_between_the_run_that_made_them_and_those_that_they_taught(swept):
    study, uri = swept
    everything = logged(uri, study)
    teacher = runs.teachers(study.run(study.trials[0]))[0]
    key = history.key(teacher.run, teacher.step)
    (name,) = [name for name, (_, tags, *_) in everything["models"].items() if tags["raysweep.history_key"] == key]
    made_by = everything["models"][name][0]
    assert made_by.startswith("teacher") and (name, teacher.step) in everything[made_by]["made"]
    assert all(everything[f"trial {trial.number}"]["from"] == [name] for trial in study.trials)
    one, other = study.trials[:2]  # they differ in the stop: both passed through the checkpoints before it
    shared = {model for model, step in everything["trial 0"]["made"] if step < 4}
    assert shared and shared <= {model for model, _ in everything["trial 1"]["made"]}
    (_, _, _, status, metrics) = everything["models"][f"trial-0-step-{one.step}"]
    assert "READY" in status and (study.metric, one.last(study.metric), one.step, "trial 0") in metrics
    assert other.number == 1


def test_the_sweep_s_run_has_space_environment_results_and_the_table(swept):
    study, uri = swept
    it = logged(uri, study)["sweep"]
    assert {"space.yaml", "environment.json", "table.md", "table.csv", "plot.png"} <= set(it["files"])
    assert it["params"]["search.scheduler.kind"] == "asha" and it["times"][2] == "FINISHED"
    assert "published" in it["tags"]["mlflow.note.content"]
    assert it["tags"]["raysweep.best_trial"] == str(study.best.number)


def test_a_lost_server_is_rebuilt_to_the_last_word(swept, tmp_path):
    study, uri = swept
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    command = [sys.executable, "-m", "raysweep", "sync-mlflow", "mirrored", "--storage", study.store.uri]
    ended = subprocess.run([*command, "--tracking-uri", empty], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    filled, live = logged(empty, study), logged(uri, study)
    assert filled.keys() == live.keys()
    for name in live:
        assert json.dumps(filled[name], sort_keys=True) == json.dumps(live[name], sort_keys=True), name


@pytest.mark.slow
def test_a_server_that_is_killed_twice_has_everything_in_the_end(swept, tmp_path, monkeypatch):
    """It dies in the middle of trials: once before it gets an entry, once after it, when its answer is lost. A server
    that were killed from outside could be up again before the mirror needs it, or when the mirror is done."""
    study, uri = swept
    monkeypatch.setattr(background, "RETRY_S", 0.2)
    server = MlflowServer(tmp_path)
    server.start()
    log_batch, batches = MlflowClient.log_batch, itertools.count(1)

    def log_batch_to_a_dying_server(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
        batch = next(batches)
        if batch not in (3, 9):
            return log_batch(client, *arguments, **named)
        if batch == 9:
            log_batch(client, *arguments, **named)
        server.kill()
        try:
            return log_batch(client, *arguments, **named)  # raises, after the client's own attempts
        finally:
            server.start()

    messages: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_batch_to_a_dying_server)
        mirror = BackgroundMirror(StudyState.reopen(study.store, "mirrored"), server.uri, messages.append)
        assert mirror.finish(report.write(study, summarize(study)), study.best, timeout_s=300)
    assert ["does not answer" in messages[0], "answers again" in messages[-1]] == [True, True], messages
    assert len(messages) == 2 and next(batches) > 9
    assert logged(server.uri, study) == logged(uri, study)
    server.kill()


def test_logging_a_study_twice_changes_nothing(swept, tmp_path):
    study, uri = swept
    before = logged(uri, study)
    assert sync_mlflow.main(["mirrored", "--storage", study.store.uri, "--tracking-uri", uri]) == 0
    assert logged(uri, study) == before


def test_a_wrong_study_storage_or_server_is_a_line(swept, tmp_path, capsys):
    study, _ = swept
    for wrong in (
        ["nothing", "--storage", study.store.uri],
        ["--storage", str(tmp_path / "nowhere")],
        ["mirrored", "--storage", study.store.uri, "--tracking-uri", "mlruns"],
        ["mirrored", "--storage", study.store.uri, "--tracking-uri", "mysql://nobody@127.0.0.1/nothing"],  # no driver
    ):
        assert sync_mlflow.main(wrong) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()
