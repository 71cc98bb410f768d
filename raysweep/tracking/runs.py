"""The MLflow runs of a study: each is created once, found again by its identity, and logged to in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from raysweep.space.domains import label
from raysweep.store.curves import Point
from raysweep.store.store import Store
from raysweep.tracking.artifacts import artifact_uri
from trainables.redaction import public

_BATCH = 1000  # entries of a call, MLflow's own limit
_PARAMS = 100  # parameters of a call, likewise
_IDENTITY = "raysweep.identity"
_PARENT = "mlflow.parentRunId"
_KIND = "custom_model_development"  # without it, MLflow's pages show prompts and traces first


class Runs:
    """The runs of one experiment.

    Args:
        name: the experiment's; it is created if there is none.
        direct: the client writes to a database itself, without a server.
    """

    def __init__(self, client: MlflowClient, name: str, store: Store, direct: bool):
        self._client = client
        self.experiment = self._find_experiment(name, store, direct)
        self._ids: dict[str, str] = {}  # by identity
        self._tags: dict[str, dict[str, str]] = {}  # by id
        self.existing = self._find_existing()  # by id, the runs that an earlier client created

    def create(self, identity: str, name: str, since: float, tags: Mapping[str, str], parent: str | None = None) -> str:
        """The id of the run with that identity. If there is none yet, one is created that starts at `since`, in seconds
        since 1970."""
        if identity not in self._ids:
            tags = {**tags, _IDENTITY: identity} | ({_PARENT: parent} if parent else {})
            run_id = self._client.create_run(self.experiment, milliseconds(since), tags, name).info.run_id
            self._ids[identity], self._tags[run_id] = run_id, tags
        return self._ids[identity]

    def tags(self, run_id: str) -> Mapping[str, str]:
        """The tags of a run."""
        return self._tags[run_id]

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        probed: Sequence[Metric] = (),
    ) -> None:
        """Log parameters, points of curves and metrics of probes, then the tags that note how far the run is logged. It
        is one call unless MLflow's limits need several; the tags are in the last one."""
        tags = tags or {}
        metrics = [Metric(point.name, point.value, milliseconds(point.time) or 0, point.step) for point in points]
        metrics += probed
        entries = [
            Param(name, public(str(label(value)))) for name, value in (params or {}).items() if value is not None
        ]
        while len(metrics) + len(entries) + len(tags) > _BATCH or len(entries) > _PARAMS:
            self._client.log_batch(run_id, metrics=metrics[: _BATCH - _PARAMS], params=entries[:_PARAMS])
            metrics, entries = metrics[_BATCH - _PARAMS :], entries[_PARAMS:]
        run_tags = [RunTag(name, public(value)) for name, value in tags.items()]
        if metrics or entries or run_tags:
            self._client.log_batch(run_id, metrics=metrics, params=entries, tags=run_tags)
        self._tags[run_id] |= tags

    def end(self, run_id: str, status: str, when: float) -> None:
        """End a run with one of MLflow's statuses, at a time in seconds since 1970."""
        self._client.set_terminated(run_id, status, milliseconds(when))

    def resume(self, run_id: str, *outdated: str) -> None:
        """Set a run that had ended to running again, and delete tags that are no longer true."""
        for name in outdated:
            self._client.delete_tag(run_id, name)
            del self._tags[run_id][name]
        self._client.update_run(run_id, status="RUNNING")

    def _find_experiment(self, name: str, store: Store, direct: bool) -> str:
        if experiment := self._client.get_experiment_by_name(name):
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)
        # A server chooses the place of artifacts itself; without a server they would go to the working directory.
        location = artifact_uri(store.files, f"mlartifacts/{name}") if direct else None
        return str(self._client.create_experiment(name, location, {"mlflow.experimentKind": _KIND}))

    def _find_existing(self) -> dict[str, Run]:
        """The runs that MLflow already has. If two have the same identity, because the answer to the first creation was
        lost, the older one stays and the other is deleted."""
        runs: dict[str, Run] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs |= {run.info.run_id: run for run in page}
            if not (token := page.token):
                break
        for run_id, run in sorted(runs.items(), key=lambda item: (item[1].info.start_time, item[0])):
            identity = run.data.tags.get(_IDENTITY)
            if identity in self._ids:
                self._client.delete_run(run_id)
                del runs[run_id]
            elif identity:
                self._ids[identity], self._tags[run_id] = run_id, dict(run.data.tags)
        return runs


def milliseconds(seconds: float) -> int | None:
    """A time in milliseconds, MLflow's unit; None for 0, which stands for a time that an earlier version did not
    record."""
    return round(seconds * 1000) or None
