"""Logs a study to MLflow: its sweep, its trials and their teachers."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow.exceptions
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from PIL import Image

from raysweep.errors import UserError
from raysweep.formats import flatten
from raysweep.space import runs
from raysweep.space.space import PROBE_PATHS, dump
from raysweep.store import curves, history
from raysweep.store.curves import Point
from raysweep.store.history import probe_key
from raysweep.study.state import StudyState
from raysweep.study.summary import difference_from_defaults
from raysweep.study.trial import TrialState
from raysweep.tracking.models import Models
from raysweep.tracking.runs import Runs, milliseconds
from trainables import config
from trainables.config import ProbeSpec, TeacherRef
from trainables.errors import one_line
from trainables.redaction import public, public_data, public_uri

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the caller retries without a limit
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print a line per run

_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED", "UNAVAILABLE": "KILLED"}
_NOTE = 5000  # characters of a description, below MLflow's limit
_NAME = 80  # characters of a run's name
# Tags of a run that record how far it is logged.
_CURVE, _PROBED = "raysweep.curve_step", "raysweep.probed_step"
_DESCRIBED, _TAUGHT = "raysweep.described", "raysweep.taught"


class Mirror:
    """The MLflow experiment of a study.

    Args:
        uri: MLflow's tracking URI.

    Raises:
        UserError: there is no MLflow at `uri`.
    """

    def __init__(self, study: StudyState, uri: str):
        self.study = study
        self._sources: dict[str, int | TeacherRef] = {}  # by history key: the trial or teacher a checkpoint comes from
        self._proposed_at: dict[str, float] = {}  # by the key of a teacher's end: when its first student was proposed
        self._attributed = 0  # trials whose checkpoints are in `_sources`
        for verbose in ("mlflow", "alembic"):
            logging.getLogger(verbose).setLevel(logging.CRITICAL)  # our own messages are one line each
        try:
            self._client = MlflowClient(tracking_uri=uri)
            direct = uri.split(":")[0] not in ("http", "https")
            self._runs = Runs(self._client, study.space.id, study.store, direct)
            self._models = Models(self._client, self._runs.experiment, study.store, self._runs.existing.values())
            self.parent = self._log_sweep()
        except ModuleNotFoundError as error:  # the driver of a database
            reason = f"needs {error.name}, which is not installed; for PostgreSQL: pip install 'raysweep[postgres]'"
            raise UserError(f"--tracking-uri {public_uri(uri)}: {reason}") from None
        except (mlflow.exceptions.MlflowException, OSError, ValueError) as error:
            raise UserError(f"--tracking-uri {public_uri(uri)}: {one_line(error)}") from None

    def close(self, files: Sequence[Path], best: TrialState | None) -> None:
        """Log the files of the report and the best trial to the sweep's run, and end it if the study is finished."""
        study, tags = self.study, {}
        for file in files:
            self._client.log_artifact(self.parent, str(file))
            if file.name == "table.md" and len(table := file.read_text(encoding="utf-8")) < _NOTE:
                tags["mlflow.note.content"] = table
        self._client.log_text(self.parent, json.dumps(study.drivers, indent=1), "environment.json")
        points = []
        if best and (value := best.last(study.metric)) is not None:
            points.append(Point(study.metric, value, best.step, best.ended_at))
            tags["raysweep.best_trial"] = str(best.number)
        self._runs.log(self.parent, points, tags)
        if study.finished:
            self._runs.end(self.parent, "FINISHED", max((trial.ended_at for trial in study.trials), default=0.0))

    def log_trial(self, trial: TrialState) -> None:
        """Log what is missing of a trial and of its teachers."""
        self._attribute(trial.number)
        run_id = self._trial(trial)
        if trial.state != "UNAVAILABLE":
            run = self.study.run(trial)
            teacher = next(iter(runs.teachers(run)), None)
            if teacher and _TAUGHT not in self._runs.tags(run_id) and self._log_teacher(teacher) >= teacher.step:
                self._models.log_teacher(run_id, teacher)
                self._runs.log(run_id, tags={_TAUGHT: "yes"})
            self._log_progress(run_id, trial, run)
        state = self._runs.tags(run_id).get("raysweep.state")
        if trial.ended and state != trial.state:
            self._runs.log(run_id, tags={"raysweep.state": trial.state, "raysweep.reason": trial.reason})
            self._runs.end(run_id, _STATUS[trial.state], trial.ended_at)
        elif state and not trial.ended:  # it had ended and is tried again
            self._runs.resume(run_id, "raysweep.state", "raysweep.reason")

    # --- the sweep's run

    def _log_sweep(self) -> str:
        study, resolved = self.study, self.study.space.resolved
        parent = self._runs.create("sweep", study.space.id, study.opened_at, {"raysweep.kind": "sweep"})
        if _DESCRIBED not in self._runs.tags(parent):
            self._client.log_text(parent, dump(study.space), "space.yaml")
            probe = {name: value for name, value in resolved["probe"].items() if name not in PROBE_PATHS}
            params = {"profile": study.space.profile, "steps_divisor": study.space.steps_divisor}
            params |= flatten({"search": resolved["search"], "probe": probe, "launch": resolved["launch"]})
            tags = {"raysweep.storage": public(study.store.uri), _DESCRIBED: "yes"}
            self._runs.log(parent, tags=self._source_tags(0) | tags, params=params)
        if not study.finished:
            self._runs.resume(parent)
        return parent

    # --- a trial's run

    def _trial(self, trial: TrialState) -> str:
        """The id of a trial's run, which is created and described if it is new."""
        name = f"trial {trial.number}"
        tags = {"raysweep.kind": "trial", "raysweep.trial": str(trial.number)} | self._source_tags(trial.driver)
        if trial.row is not None:
            tags["raysweep.row"] = str(trial.row + 1)
        if trial.repeats is not None:
            tags["raysweep.repeats"] = f"trial {trial.repeats}"
        run_id = self._runs.create(name, self._run_name(trial), trial.proposed_at, tags, self.parent)
        if _DESCRIBED in self._runs.tags(run_id):
            return run_id
        described = {_DESCRIBED: "yes"}
        if trial.state == "UNAVAILABLE":
            self._runs.log(run_id, tags=described, params=trial.point)
            return run_id
        run = self.study.run(trial)
        params = flatten(self.study.configuration(trial).trial.model_dump(mode="json")) | {"steps": run.steps}
        for teacher in runs.teachers(run)[:1]:
            described["raysweep.teacher_key"] = history.key(teacher.run, teacher.step)
            described["raysweep.teacher_step"] = str(teacher.step)
            described["raysweep.teacher_run_id"] = teacher_id = self._teacher(teacher)
            link = f"#/experiments/{self._runs.experiment}/runs/{teacher_id}"
            title = f"{_kind(teacher)} {history.key(teacher.run, teacher.run.steps)[:8]}"
            described["mlflow.note.content"] = f"Taught by [teacher {title}, as it was at step {teacher.step}]({link})."
        self._describe(run_id, run, described, params)
        return run_id

    def _run_name(self, trial: TrialState) -> str:
        """A trial's name in lists and legends: its number, and how it differs from the defaults."""
        name = f"trial {trial.number}: {difference_from_defaults(self.study, trial.point)}"
        return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"

    def _log_progress(self, run_id: str, trial: TrialState, run: config.Run) -> None:
        """Log what is missing of a trial's curve, probes, pictures, checkpoints and decisions."""
        store, known = self.study.store, self._runs.tags(run_id)
        curve_step, probed_step = int(known.get(_CURVE, 0)), int(known.get(_PROBED, 0))
        reached = trial.step
        # Another trial may have trained this run further, but steps beyond the next rung do not belong to this trial.
        if trial.state in ("RUNNING", "FAILED") and (latest := store.deepest(run, self.study.next_rung(trial))):
            reached = max(reached, latest.step)
        tags: dict[str, str] = {}
        probed: list[Metric] = []
        for step in sorted(step for step in trial.probes if step > probed_step):
            model, when = self._model(run_id, run, step), trial.probed_at.get(step, 0.0)
            self._log_samples(run_id, run, step, self.study.probe(trial), when)
            time = milliseconds(when) or 0
            probed += [Metric(name, value, time, step, model) for name, value in trial.probes[step].items()]
            tags |= {_PROBED: str(step), "raysweep.history_key": history.key(run, step)}
        if reached > curve_step:
            tags[_CURVE] = str(reached)
        for step, decision in trial.decisions.items():
            if f"raysweep.decision.{step}" not in known:
                tags[f"raysweep.decision.{step}"] = decision.reason
        self._runs.log(run_id, curves.training(store, run, reached, curve_step), tags, probed=probed)

    def _log_samples(self, run_id: str, run: config.Run, step: int, probe: ProbeSpec, when: float) -> None:
        """Log a probe's picture of samples, unless it is there already. MLflow would show it twice, e.g. after an
        earlier client was killed between logging the picture and the tags."""
        if run_id in self._runs.existing:
            images = self._client.list_artifacts(run_id, "images")
            if any(file.path.startswith(f"images/samples+step+{step}+") for file in images):
                return
        if picture := self.study.store.picture(probe_key(run, step, probe)):
            image = Image.open(io.BytesIO(picture)).convert("RGB")
            self._client.log_image(run_id, image, key="samples", step=step, timestamp=milliseconds(when))

    # --- a teacher's run

    def _teacher(self, teacher: TeacherRef) -> str:
        """The id of the run of a teacher's training, which is created and described if it is new."""
        run, kind, key = teacher.run, _kind(teacher), history.key(teacher.run, teacher.run.steps)
        name, since = f"teacher {kind} {key[:8]}", self._proposed_at[key]
        tags = {"raysweep.kind": "teacher"} | self._source_tags(0)
        run_id = self._runs.create(f"teacher {key}", name, since, tags, self.parent)
        if _DESCRIBED not in self._runs.tags(run_id):
            params = flatten(run.model_dump(mode="json", exclude={"phases"})) | {"method.kind": kind}
            self._describe(run_id, run, {_DESCRIBED: "yes"}, params)
        return run_id

    def _log_teacher(self, teacher: TeacherRef) -> int:
        """Log the committed checkpoints of a teacher's training; returns the step up to which it is logged."""
        run, run_id = teacher.run, self._teacher(teacher)
        for step in self.study.milestones:
            curve_step = int(self._runs.tags(run_id).get(_CURVE, 0))
            if curve_step < step <= teacher.step and (checkpoint := self.study.store.find(run, step)):
                self._model(run_id, run, step)
                key = checkpoint.key
                tags = {f"raysweep.history_key.{step}": key, "raysweep.history_key": key, _CURVE: str(step)}
                self._runs.log(run_id, curves.training(self.study.store, run, step, curve_step), tags)
                self._runs.end(run_id, "FINISHED", checkpoint.manifest.training.time)
        return int(self._runs.tags(run_id).get(_CURVE, 0))

    # --- pieces

    def _describe(self, run_id: str, run: config.Run, tags: dict[str, str], params: dict[str, Any]) -> None:
        self._client.log_text(run_id, json.dumps(public_data(run.model_dump(mode="json")), indent=1), "run.json")
        self._models.log_dataset(run_id, run)
        self._runs.log(run_id, tags=tags, params=params)

    def _attribute(self, number: int) -> None:
        """Decide which MLflow run each checkpoint of the trials up to this one is attributed to. The first trial, by
        number, whose run contains the checkpoint or is taught by it decides, so that the result does not depend on
        timing."""
        for trial in self.study.trials[self._attributed : number + 1]:
            if trial.state == "UNAVAILABLE" or trial.repeats is not None:
                continue
            run = self.study.run(trial)
            ends = self.study.configuration(trial).rungs
            for step in {*self.study.milestones, *ends}:
                if step <= run.steps:
                    self._sources.setdefault(history.key(run, step), trial.number)
            for teacher in runs.teachers(run):
                self._proposed_at.setdefault(history.key(teacher.run, teacher.run.steps), trial.proposed_at)
                for step in {*self.study.milestones, teacher.step}:
                    if step <= teacher.step:
                        self._sources.setdefault(history.key(teacher.run, step), teacher)
        self._attributed = max(self._attributed, number + 1)

    def _model(self, run_id: str, run: config.Run, step: int) -> str:
        """The id of the LoggedModel of a run's checkpoint at `step`."""
        source = self._sources[history.key(run, step)]
        if isinstance(source, TeacherRef):
            name, source_id = f"teacher-{_kind(source)}", self._teacher(source)
        else:
            name, source_id = f"trial-{source}", self._trial(self.study.trials[source])
        return self._models.log_checkpoint(run_id, f"{name}-step-{step}", run, step, source_id)

    def _source_tags(self, driver: int) -> dict[str, str]:
        """MLflow's own tags for the program that made a run."""
        tags = {"mlflow.source.name": "raysweep", "mlflow.source.type": "LOCAL"}
        if driver < len(self.study.drivers) and (commit := self.study.drivers[driver].get("git_commit")):
            tags["mlflow.source.git.commit"] = commit
        return tags


def _kind(teacher: TeacherRef) -> str:
    return teacher.run.phases[0].term.kind
