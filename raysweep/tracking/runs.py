"""A study's runs in MLflow: made once each, told in batches, found again by what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from raysweep.space.domains import label
from raysweep.store.curves import Point
from raysweep.store.store import Store

_BATCH = 1000  # MLflow's own limit of all that a call says
_PARAMS = 100  # and of parameters
_IDENTITY = "raysweep.identity"
_PARENT = "mlflow.parentRunId"
_KIND = "custom_model_development"  # else MLflow's pages begin with prompts and traces


class Runs:
    """The runs of one experiment.

    Args:
        name: the experiment's; it is made where there is none.
        bare: the client writes to a database itself, without a server.
    """

    def __init__(self, client: MlflowClient, name: str, store: Store, bare: bool):
        self._client = client
        self.experiment = self._find_experiment(name, store, bare)
        self._ids: dict[str, str] = {}  # what a run stands for -> its id
        self._tags: dict[str, dict[str, str]] = {}  # by id: what was said of it, and how far
        self.adopted = self._adopt()  # by id, those that an earlier client made

    def make(self, identity: str, name: str, since: float, tags: Mapping[str, str], parent: str | None = None) -> str:
        """The id of the run that stands for `identity`; it begins at `since` where there is none yet."""
        if identity not in self._ids:
            told = {**tags, _IDENTITY: identity} | ({_PARENT: parent} if parent else {})
            made = self._client.create_run(self.experiment, milliseconds(since), told, name)
            self._ids[identity], self._tags[made.info.run_id] = made.info.run_id, told
        return self._ids[identity]

    def tags(self, run_id: str) -> Mapping[str, str]:
        """What was said of a run."""
        return self._tags[run_id]

    def say(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        judged: Sequence[Metric] = (),
    ) -> None:
        """Parameters, metrics, and last the tags that say how far it has come: in one call where they fit into one."""
        tags = tags or {}
        metrics = [Metric(point.name, point.value, milliseconds(point.time) or 0, point.step) for point in points]
        metrics += judged
        told = [Param(name, str(label(value))) for name, value in (params or {}).items() if value is not None]
        while len(metrics) + len(told) + len(tags) > _BATCH or len(told) > _PARAMS:
            self._client.log_batch(run_id, metrics=metrics[: _BATCH - _PARAMS], params=told[:_PARAMS])
            metrics, told = metrics[_BATCH - _PARAMS :], told[_PARAMS:]
        marks = [RunTag(name, value) for name, value in tags.items()]
        if metrics or told or marks:
            self._client.log_batch(run_id, metrics=metrics, params=told, tags=marks)
        self._tags[run_id] |= tags

    def end(self, run_id: str, status: str, when: float) -> None:
        """It has ended."""
        self._client.set_terminated(run_id, status, milliseconds(when))

    def resume(self, run_id: str, *untrue: str) -> None:
        """It goes on after all, and these tags are not true any more."""
        for name in untrue:
            self._client.delete_tag(run_id, name)
            del self._tags[run_id][name]
        self._client.update_run(run_id, status="RUNNING")

    def _find_experiment(self, name: str, store: Store, bare: bool) -> str:
        if found := self._client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        folder = store.files.local("mlartifacts", name)
        # A server decides itself where artifacts go; a bare database would put them into the working directory.
        location = folder.as_uri() if folder and bare else None
        return str(self._client.create_experiment(name, location, {"mlflow.experimentKind": _KIND}))

    def _adopt(self) -> dict[str, Run]:
        """The runs that are there. Of two for the same, made where an answer was lost, the older one counts."""
        found: dict[str, Run] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([self.experiment], max_results=1000, page_token=token)
            found |= {run.info.run_id: run for run in page}
            if not (token := page.token):
                break
        for run_id, run in sorted(found.items(), key=lambda each: (each[1].info.start_time, each[0])):
            identity = run.data.tags.get(_IDENTITY)
            if identity in self._ids:
                self._client.delete_run(run_id)
                del found[run_id]
            elif identity:
                self._ids[identity], self._tags[run_id] = run_id, dict(run.data.tags)
        return found


def milliseconds(seconds: float) -> int | None:
    """A time as MLflow counts it; None for 0, which stands for one that was not noted."""
    return round(seconds * 1000) or None
