"""A study's checkpoints as MLflow's LoggedModels, and its data as a dataset: which run made what from what."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Run,
)
from mlflow.tracking import MlflowClient

from raysweep.store import history
from raysweep.store.store import Store
from raysweep.uris import public
from trainables import config
from trainables.datasets import catalog

_KEY = "raysweep.history_key"
_PAGE = 100  # MLflow's own limit
_DIGEST = 36  # characters, MLflow's limit


class Models:
    """One LoggedModel per published checkpoint, found by its history key. The weights stay in the store."""

    def __init__(self, client: MlflowClient, experiment: str, store: Store, adopted: Iterable[Run]):
        self._client, self._experiment, self._store = client, experiment, store
        self._ids: dict[str, str] = {}  # history key -> the model's id
        self._made = {  # (run, model), as outputs
            (run.info.run_id, model.model_id) for run in adopted if run.outputs for model in run.outputs.model_outputs
        }
        self._adopt()

    def published(self, run_id: str, name: str, run: config.Run, step: int, maker: str) -> str:
        """The model of a checkpoint that `run_id` came through; returns its id.

        Args:
            name: for people.
            maker: the id of the run that the checkpoint is said to come from, of all that share it.
        """
        key = history.key(run, step)
        if key not in self._ids:
            place = f"{public(self._store.uri)}/checkpoints/{step}/{key}"
            tags = {_KEY: key, "raysweep.place": place, "mlflow.model.isExternal": "true"}
            made = self._client.create_logged_model(
                self._experiment, name, maker, tags, {"step": str(step), "history_key": key}, run.backbone
            )
            self._client.finalize_logged_model(made.model_id, "READY")
            self._ids[key] = made.model_id
        model = self._ids[key]
        if (run_id, model) not in self._made:
            self._client.log_outputs(run_id, [LoggedModelOutput(model, step)])
            self._made.add((run_id, model))
        return model

    def taught(self, run_id: str, teacher: config.TeacherRef) -> None:
        """`run_id` looks up to that checkpoint, whose model is known."""
        model = self._ids[history.key(teacher.run, teacher.step)]
        told = self._client.get_run(run_id).inputs
        if model not in [one.model_id for one in told.model_inputs]:
            self._client.log_inputs(run_id, models=[LoggedModelInput(model)])

    def trained_on(self, run_id: str, run: config.Run) -> None:
        """The data set behind a run."""
        found, identity = catalog.find(run.data), catalog.identity(run.data)
        profile = {"images": found.num_images, "classes": found.num_classes, "latent": found.latent_shape}
        data = Dataset(
            name=run.data,
            digest=identity[:_DIGEST],
            source_type="raysweep",
            source=json.dumps({"name": run.data, "identity": identity}),
            profile=json.dumps(profile),
        )
        self._client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])

    def _adopt(self) -> None:
        token: str | None = None
        while True:
            page = self._client.search_logged_models(
                [self._experiment],
                max_results=_PAGE,
                order_by=[{"field_name": "creation_timestamp", "ascending": False}],
                page_token=token,
            )
            for model in page:
                if key := model.tags.get(_KEY):
                    self._ids[key] = model.model_id  # of two, made where an answer was lost, the older one
            if not (token := page.token):
                return
