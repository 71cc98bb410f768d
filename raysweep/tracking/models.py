"""The checkpoints of a study as MLflow's LoggedModels and its data as a dataset, linked to the runs that made or used
them."""

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
from trainables import config
from trainables.datasets import catalog
from trainables.redaction import public

_KEY = "raysweep.history_key"
_PAGE = 100  # MLflow's own limit
_DIGEST = 36  # characters, MLflow's limit


class Models:
    """One LoggedModel for each committed checkpoint, found by its history key. The weights stay in the store.

    Args:
        existing: the runs that an earlier client created.
    """

    def __init__(self, client: MlflowClient, experiment: str, store: Store, existing: Iterable[Run]):
        self._client, self._experiment, self._store = client, experiment, store
        self._outputs = {  # (run, model)
            (run.info.run_id, model.model_id) for run in existing if run.outputs for model in run.outputs.model_outputs
        }
        self._ids = self._find_existing()  # by history key

    def log_checkpoint(self, run_id: str, name: str, run: config.Run, step: int, source: str) -> str:
        """Log a checkpoint as an output of the run `run_id`; returns the id of its model.

        Args:
            name: the model's name in MLflow.
            source: the id of the run that the checkpoint is attributed to, one of those that share it.
        """
        key = history.key(run, step)
        if key not in self._ids:
            place = public(str(self._store.files.location / f"checkpoints/{step}/{key}"))
            tags = {_KEY: key, "raysweep.place": place, "mlflow.model.isExternal": "true"}
            created = self._client.create_logged_model(
                self._experiment, name, source, tags, {"step": str(step), "history_key": key}, run.backbone
            )
            self._client.finalize_logged_model(created.model_id, "READY")
            self._ids[key] = created.model_id
        model = self._ids[key]
        if (run_id, model) not in self._outputs:
            self._client.log_outputs(run_id, [LoggedModelOutput(model, step)])
            self._outputs.add((run_id, model))
        return model

    def log_teacher(self, run_id: str, teacher: config.TeacherRef) -> None:
        """Log the checkpoint that teaches a run as an input of the run. The checkpoint's model must exist."""
        model = self._ids[history.key(teacher.run, teacher.step)]
        inputs = self._client.get_run(run_id).inputs
        if model not in [known.model_id for known in inputs.model_inputs]:
            self._client.log_inputs(run_id, models=[LoggedModelInput(model)])

    def log_dataset(self, run_id: str, run: config.Run) -> None:
        """Log the data set that a run is trained on as an input of the run."""
        data, identity = catalog.find(run.data), catalog.identity(run.data)
        profile = {"images": data.num_images, "classes": data.num_classes, "latent": data.latent_shape}
        dataset = Dataset(
            name=public(run.data),
            digest=identity[:_DIGEST],
            source_type="raysweep",
            source=json.dumps({"name": public(run.data), "identity": identity}),
            profile=json.dumps(profile),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _find_existing(self) -> dict[str, str]:
        """The models that MLflow already has, by history key. If there are two of one checkpoint, because the answer to
        the first creation was lost, the older one counts."""
        ids: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_logged_models(
                [self._experiment],
                max_results=_PAGE,
                order_by=[{"field_name": "creation_timestamp", "ascending": False}],
                page_token=token,
            )
            ids |= {model.tags[_KEY]: model.model_id for model in page if model.tags.get(_KEY)}  # older ones come later
            if not (token := page.token):
                return ids
