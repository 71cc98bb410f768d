"""What is said of a study: of its sweep, its trials and their teachers."""

from __future__ import annotations

import json
import logging
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
from raysweep.uris import public
from trainables import config
from trainables.config import ProbeSpec, TeacherRef

_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED", "UNAVAILABLE": "KILLED"}
_NOTE = 5000  # characters of a description, below MLflow's limit
_NAME = 80  # of a run's name
# Tags of a run that say how far it has been told.
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
        self._makers: dict[str, int | TeacherRef] = {}  # of checkpoints, by history key: a trial's number or a teacher
        self._asked: dict[str, float] = {}  # when teachers were asked for first, by the history keys of their ends
        self._claimed = 0  # trials
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # what goes wrong is told by us, in a line
        try:
            self._client = MlflowClient(tracking_uri=uri)
            bare = uri.split(":")[0] not in ("http", "https")
            self._runs = Runs(self._client, study.space.id, study.store, bare)
            self._models = Models(self._client, self._runs.experiment, study.store, self._runs.adopted.values())
            self.parent = self._describe_sweep()
        except ModuleNotFoundError as error:  # the driver of a database
            told = f"needs {error.name}, which is not installed; for PostgreSQL: pip install 'raysweep[postgres]'"
            raise UserError(public(f"--tracking-uri {uri}: {told}")) from None
        except (mlflow.exceptions.MlflowException, OSError, ValueError) as error:
            raise UserError(public(f"--tracking-uri {uri}: {str(error).splitlines()[0]}")) from None

    def close(self, files: Sequence[Path], best: TrialState | None) -> None:
        """Attach the study's results to the sweep's run and name the best trial; end the run where all has ended."""
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
        self._runs.say(self.parent, points, tags)
        if study.finished:
            self._runs.end(self.parent, "FINISHED", max((trial.ended_at for trial in study.trials), default=0.0))

    def sync_trial(self, trial: TrialState) -> None:
        """One trial's run, and its teachers'."""
        self._claim(trial.number)
        run_id = self._trial(trial)
        if trial.state != "UNAVAILABLE":
            run = self.study.run(trial)
            teacher = next(iter(runs.teachers(run)), None)
            if teacher and _TAUGHT not in self._runs.tags(run_id) and self._teacher_until(teacher) >= teacher.step:
                self._models.taught(run_id, teacher)
                self._runs.say(run_id, tags={_TAUGHT: "yes"})
            self._measured(run_id, trial, run)
        told = self._runs.tags(run_id).get("raysweep.state")
        if trial.ended and told != trial.state:
            self._runs.say(run_id, tags={"raysweep.state": trial.state, "raysweep.reason": trial.reason})
            self._runs.end(run_id, _STATUS[trial.state], trial.ended_at)
        elif told and not trial.ended:  # it is tried again
            self._runs.resume(run_id, "raysweep.state", "raysweep.reason")

    # --- the sweep's run

    def _describe_sweep(self) -> str:
        study, resolved = self.study, self.study.space.resolved
        parent = self._runs.make("sweep", study.space.id, study.opened_at, {"raysweep.kind": "sweep"})
        if _DESCRIBED not in self._runs.tags(parent):
            self._client.log_text(parent, dump(study.space), "space.yaml")
            probe = {name: value for name, value in resolved["probe"].items() if name not in PROBE_PATHS}
            params = {"profile": study.space.profile, "steps_divisor": study.space.steps_divisor}
            params |= flatten({"search": resolved["search"], "probe": probe, "launch": resolved["launch"]})
            tags = {"raysweep.storage": public(study.store.uri), _DESCRIBED: "yes"}
            self._runs.say(parent, tags=self._source(0) | tags, params=params)
        if not study.finished:
            self._runs.resume(parent)
        return parent

    # --- a trial's run

    def _trial(self, trial: TrialState) -> str:
        """The run of a trial, with all that is known when it is proposed."""
        name = f"trial {trial.number}"
        tags = {"raysweep.kind": "trial", "raysweep.trial": str(trial.number)} | self._source(trial.driver)
        if trial.row is not None:
            tags["raysweep.row"] = str(trial.row + 1)
        if trial.repeats is not None:
            tags["raysweep.repeats"] = f"trial {trial.repeats}"
        run_id = self._runs.make(name, self._shown(trial), trial.proposed_at, tags, self.parent)
        if _DESCRIBED in self._runs.tags(run_id):
            return run_id
        known = {_DESCRIBED: "yes"}
        if trial.state == "UNAVAILABLE":
            self._runs.say(run_id, tags=known, params=trial.point)
            return run_id
        run = self.study.run(trial)
        params = flatten(self.study.space.trial(trial.point)[0].model_dump(mode="json")) | {"steps": run.steps}
        for teacher in runs.teachers(run)[:1]:
            known["raysweep.teacher_key"] = history.key(teacher.run, teacher.step)
            known["raysweep.teacher_step"] = str(teacher.step)
            known["raysweep.teacher_run_id"] = teacher_id = self._teacher(teacher)
            link = f"#/experiments/{self._runs.experiment}/runs/{teacher_id}"
            shown = f"{_kind(teacher)} {history.key(teacher.run, teacher.run.steps)[:8]}"
            known["mlflow.note.content"] = f"Taught by [teacher {shown}, as it was at step {teacher.step}]({link})."
        self._begin(run_id, run, known, params)
        return run_id

    def _shown(self, trial: TrialState) -> str:
        """A trial's name in lists and legends: its number, and how it differs from the defaults."""
        told = f"trial {trial.number}: {difference_from_defaults(self.study, trial.point)}"
        return told if len(told) <= _NAME else f"{told[: _NAME - 1]}…"

    def _measured(self, run_id: str, trial: TrialState, run: config.Run) -> None:
        """Curve, probes, pictures, checkpoints and decisions, as far as they are not there yet."""
        store, known = self.study.store, self._runs.tags(run_id)
        drawn, probed = int(known.get(_CURVE, 0)), int(known.get(_PROBED, 0))
        reached = trial.step
        if trial.state in ("RUNNING", "FAILED") and (found := store.deepest(run, self.study.next_rung(trial))):
            reached = max(reached, found.step)  # what was published on the way to its next rung, and no other trial's
        tags: dict[str, str] = {}
        judged: list[Metric] = []
        for step in sorted(step for step in trial.probes if step > probed):
            model, when = self._model(run_id, run, step), trial.probed_at.get(step, 0.0)
            self._grid(run_id, run, step, self.study.probe(trial), when)
            time = milliseconds(when) or 0
            judged += [Metric(name, value, time, step, model) for name, value in trial.probes[step].items()]
            tags |= {_PROBED: str(step), "raysweep.history_key": history.key(run, step)}
        if reached > drawn:
            tags[_CURVE] = str(reached)
        for step, decision in trial.decisions.items():
            if f"raysweep.decision.{step}" not in known:
                tags[f"raysweep.decision.{step}"] = decision.reason
        self._runs.say(run_id, curves.training(store, run, reached, drawn), tags, judged=judged)

    def _grid(self, run_id: str, run: config.Run, step: int, probe: ProbeSpec, when: float) -> None:
        if run_id in self._runs.adopted:  # by a client that was perhaps ended here: MLflow would show it twice
            there = self._client.list_artifacts(run_id, "images")
            if any(file.path.startswith(f"images/samples+step+{step}+") for file in there):
                return
        with self.study.store.open_picture(probe_key(run, step, probe)) as stream:
            if stream:
                picture = Image.open(stream).convert("RGB")
                self._client.log_image(run_id, picture, key="samples", step=step, timestamp=milliseconds(when))

    # --- a teacher's run

    def _teacher(self, teacher: TeacherRef) -> str:
        """The run of a teacher's training."""
        run, kind, key = teacher.run, _kind(teacher), history.key(teacher.run, teacher.run.steps)
        tags = {"raysweep.kind": "teacher"} | self._source(0)
        run_id = self._runs.make(f"teacher {key}", f"teacher {kind} {key[:8]}", self._asked[key], tags, self.parent)
        if _DESCRIBED not in self._runs.tags(run_id):
            params = flatten(run.model_dump(mode="json", exclude={"phases"})) | {"method.kind": kind}
            self._begin(run_id, run, {_DESCRIBED: "yes"}, params)
        return run_id

    def _teacher_until(self, teacher: TeacherRef) -> int:
        """Say what is published of a teacher's training; returns how far that is."""
        run, run_id = teacher.run, self._teacher(teacher)
        for step in self.study.milestones:
            drawn = int(self._runs.tags(run_id).get(_CURVE, 0))
            if drawn < step <= teacher.step and (found := self.study.store.find(run, step)):
                self._model(run_id, run, step)
                tags = {f"raysweep.history_key.{step}": found.key, "raysweep.history_key": found.key, _CURVE: str(step)}
                self._runs.say(run_id, curves.training(self.study.store, run, step, drawn), tags)
                self._runs.end(run_id, "FINISHED", found.manifest.training.time)
        return int(self._runs.tags(run_id).get(_CURVE, 0))

    # --- pieces

    def _begin(self, run_id: str, run: config.Run, tags: dict[str, str], params: dict[str, Any]) -> None:
        self._client.log_text(run_id, json.dumps(run.model_dump(mode="json"), indent=1), "run.json")
        self._models.trained_on(run_id, run)
        self._runs.say(run_id, tags=tags, params=params)

    def _claim(self, number: int) -> None:
        """Note which run each checkpoint up to that trial is said to come from: the first, by the trials' numbers, that
        comes through it or looks up to it. So it does not depend on who was there first."""
        for trial in self.study.trials[self._claimed : number + 1]:
            if trial.state == "UNAVAILABLE" or trial.repeats is not None:
                continue
            run = self.study.run(trial)
            ends = self.study.space.rungs(self.study.space.trial(trial.point)[0])
            for step in {*self.study.milestones, *ends}:
                if step <= run.steps:
                    self._makers.setdefault(history.key(run, step), trial.number)
            for teacher in runs.teachers(run):
                self._asked.setdefault(history.key(teacher.run, teacher.run.steps), trial.proposed_at)
                for step in {*self.study.milestones, teacher.step}:
                    if step <= teacher.step:
                        self._makers.setdefault(history.key(teacher.run, step), teacher)
        self._claimed = max(self._claimed, number + 1)

    def _model(self, run_id: str, run: config.Run, step: int) -> str:
        """The LoggedModel of a checkpoint that a run came through; returns its id."""
        maker = self._makers[history.key(run, step)]
        if isinstance(maker, TeacherRef):
            name, made_by = f"teacher-{_kind(maker)}", self._teacher(maker)
        else:
            name, made_by = f"trial-{maker}", self._trial(self.study.trials[maker])
        return self._models.published(run_id, f"{name}-step-{step}", run, step, made_by)

    def _source(self, driver: int) -> dict[str, str]:
        """MLflow's own tags for what made a run."""
        tags = {"mlflow.source.name": "raysweep", "mlflow.source.type": "LOCAL"}
        if driver < len(self.study.drivers) and (commit := self.study.drivers[driver].get("git_commit")):
            tags["mlflow.source.git.commit"] = commit
        return tags


def _kind(teacher: TeacherRef) -> str:
    return teacher.run.phases[0].term.kind
