"""MLflow as a mirror of a study: one run for the sweep, one per trial, one per teacher. The only module that knows
MLflow.

Everything it says comes from the journal and the store, and is said once: saying a trial again adds what is missing. So
a restarted sweep goes on in the same runs, and a lost server can be filled again (mirroring.py does both).
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # who calls tries again himself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line per run

import mlflow.exceptions
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from PIL import Image

from raysweep import history, runs
from raysweep.domains import label
from raysweep.errors import UserError
from raysweep.space import dump
from raysweep.study import Study
from raysweep.trials import TrialState
from raysweep.uris import public
from raysweep.work import probe_key
from trainables import spec

_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED", "UNAVAILABLE": "KILLED"}
_BATCH = 1000  # MLflow's own limit of metrics a call
_SYNCED = "raysweep.synced_step"


def check_uri(uri: str) -> None:
    """Refuse a tracking URI that no MLflow of today can be behind, before anything is started.

    Raises:
        UserError: it is neither a database nor a server.
    """
    if uri.split(":")[0].split("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https"):
        raise UserError(
            f"--tracking-uri {public(uri)}: give a database or a server, e.g. sqlite:///mlflow.db or http://…"
        )


class Mirror:
    """The MLflow experiment of a study.

    Args:
        uri: MLflow's tracking URI.

    Raises:
        UserError: there is no MLflow at `uri`.
    """

    def __init__(self, study: Study, uri: str):
        self.study, self.uri = study, uri
        self._runs: dict[str, str] = {}  # what a run stands for -> its id
        self._synced: dict[str, int] = {}  # run id -> the last step that was mirrored
        self._ended: set[str] = set()
        self._decided: set[tuple[str, int]] = set()  # decisions that were told, by run and step
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # what goes wrong is told by us, in a line
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._find_experiment()
            self._adopt()
        except (mlflow.exceptions.MlflowException, OSError, ValueError) as error:
            raise UserError(public(f"--tracking-uri {uri}: {str(error).splitlines()[0]}")) from None
        self.parent = self._run("sweep", study.space.id, {"raysweep.kind": "sweep"})

    def close(self, files: list[Path], best: TrialState | None) -> None:
        """Attach the study's space and its results to the sweep's run, name the best trial, and end the run."""
        self._client.log_text(self.parent, dump(self.study.space), "space.yaml")
        for file in files:
            self._client.log_artifact(self.parent, str(file))
        if best and (value := best.last(self.study.metric)) is not None:
            self._client.log_metric(self.parent, self.study.metric, value)
            self._client.set_tag(self.parent, "raysweep.best_trial", best.number)
        self._client.set_terminated(self.parent, "FINISHED")

    def sync_trial(self, trial: TrialState) -> None:
        """One trial's run, and its teachers'."""
        name = f"trial {trial.number}"
        if trial.state == "UNAVAILABLE":
            run_id = self._run(name, name, {"raysweep.kind": "trial", "raysweep.trial": str(trial.number)})
            self._params(run_id, trial.point)
            return self._end(run_id, trial)
        run = self.study.run(trial)
        tags = {"raysweep.kind": "trial", "raysweep.trial": str(trial.number)}
        for teacher in runs.teachers(run)[:1]:
            tags |= {
                "raysweep.teacher_run_id": self._teacher(teacher),
                "raysweep.teacher_key": history.key(teacher.run, teacher.step),
                "raysweep.teacher_step": str(teacher.step),
            }
        if name not in self._runs:
            run_id = self._run(name, name, tags)
            described = self.study.space.trial(trial.point)[0].model_dump(mode="json")
            self._params(run_id, {**_flat(described), "steps": run.steps})
            self._client.log_text(run_id, json.dumps(run.model_dump(mode="json"), indent=1), "run.json")
        run_id = self._runs[name]
        new = [step for step in trial.probes if step > self._synced.get(run_id, 0)]
        if new:
            metrics = [(metric, value, step) for step in new for metric, value in trial.probes[step].items()]
            self._metrics(run_id, metrics + self._curve(run, trial.step, self._synced.get(run_id, 0)))
            for step in new:
                self._grid(run_id, run, step, self.study.probe(trial))
            self._client.set_tag(run_id, "raysweep.history_key", history.key(run, trial.step))
            self._mark(run_id, trial.step)
        if run_id not in self._ended:
            for step, decision in trial.decisions.items():
                if (run_id, step) not in self._decided:
                    self._client.set_tag(run_id, f"raysweep.decision.{step}", decision.reason)
                    self._decided.add((run_id, step))
        if trial.ended:
            self._end(run_id, trial)

    # --- teachers

    def _teacher(self, teacher: spec.TeacherRef) -> str:
        """The run of a teacher's training, its curve as far as it is published; returns its id."""
        run, kind = teacher.run, teacher.run.phases[0].term.kind
        name = f"teacher {history.key(run, run.steps)}"
        if name not in self._runs:
            shown = f"teacher {kind} {history.key(run, run.steps)[:8]}"
            run_id = self._run(name, shown, {"raysweep.kind": "teacher"})
            self._params(run_id, _flat(run.model_dump(mode="json", exclude={"phases"})) | {"method.kind": kind})
            self._client.log_text(run_id, json.dumps(run.model_dump(mode="json"), indent=1), "run.json")
        run_id = self._runs[name]
        synced = self._synced.get(run_id, 0)
        for step in self.study.milestones:
            if synced < step <= teacher.step and (found := self.study.store.find(run, step)):
                self._metrics(run_id, self._curve(run, step, self._synced.get(run_id, 0)))
                self._client.set_tag(run_id, f"raysweep.history_key.{step}", found.key)
                self._client.set_tag(run_id, "raysweep.history_key", found.key)
                self._mark(run_id, step)
        if self._synced.get(run_id, 0) >= teacher.step:
            self._client.set_terminated(run_id, "FINISHED")
        return run_id

    # --- pieces

    def _curve(self, run: spec.Run, step: int, after: int) -> list[tuple[str, float, int]]:
        """The training curve from step `after` to `step`, forks included: each stretch told by its checkpoint."""
        points = []
        for manifest in self.study.store.way(run, step):
            if manifest["step"] > after:
                for point in manifest["curve"]:
                    points += [(name, value, int(point["step"])) for name, value in point.items() if name != "step"]
                if seconds := manifest["seconds"]:
                    points.append(
                        ("steps_per_s", (manifest["step"] - manifest["from_step"]) / seconds, manifest["step"])
                    )
        return points

    def _grid(self, run_id: str, run: spec.Run, step: int, probe: spec.ProbeSpec) -> None:
        store = self.study.store
        with store.open_picture("probes", probe_key(run, step, probe)) as stream:
            if stream:
                self._client.log_image(run_id, Image.open(stream).convert("RGB"), key="samples", step=step)

    def _end(self, run_id: str, trial: TrialState) -> None:
        if run_id in self._ended:
            return
        self._client.set_tag(run_id, "raysweep.state", trial.state)
        self._client.set_tag(run_id, "raysweep.reason", trial.reason)
        self._client.set_terminated(run_id, _STATUS[trial.state])
        self._ended.add(run_id)

    def _params(self, run_id: str, values: dict[str, Any]) -> None:
        params = [Param(name, str(label(value))) for name, value in values.items() if value is not None]
        self._client.log_batch(run_id, params=params)

    def _metrics(self, run_id: str, values: list[tuple[str, float, int]]) -> None:
        metrics = [Metric(name, value, 0, step) for name, value, step in values]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + _BATCH])

    def _mark(self, run_id: str, step: int) -> None:
        self._client.set_tag(run_id, _SYNCED, step)
        self._synced[run_id] = step

    def _run(self, identity: str, name: str, tags: dict[str, str]) -> str:
        """The id of the run that stands for `identity`, made where there is none."""
        if identity not in self._runs:
            parent = {} if identity == "sweep" else {"mlflow.parentRunId": self.parent}
            created = self._client.create_run(
                self._experiment, run_name=name, tags={**tags, **parent, "raysweep.identity": identity}
            )
            self._runs[identity] = created.info.run_id
        elif tags:
            self._client.log_batch(self._runs[identity], tags=[RunTag(k, v) for k, v in tags.items()])
        return self._runs[identity]

    def _find_experiment(self) -> str:
        name = self.study.space.id
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        folder = self.study.store.local("mlartifacts", name)
        # A server decides itself where artifacts go; a bare database would put them into the working directory.
        bare = self.uri.split(":")[0] not in ("http", "https")
        location = folder.as_uri() if folder and bare else None
        return str(self._client.create_experiment(name, artifact_location=location))

    def _adopt(self) -> None:
        """Go on in the runs that an earlier driver made."""
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=500, page_token=token)
            for run in page:
                self._remember(run)
            if not (token := page.token):
                return

    def _remember(self, run: Run) -> None:
        tags, run_id = run.data.tags, run.info.run_id
        if identity := tags.get("raysweep.identity"):
            self._runs[identity] = run_id
            self._synced[run_id] = int(tags.get(_SYNCED, 0))
            if run.info.status != "RUNNING" and identity.startswith("trial"):
                self._ended.add(run_id)


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        below = f"{path}.{key}" if path else key
        flat |= _flat(value, below) if isinstance(value, dict) else {below: value}
    return flat
