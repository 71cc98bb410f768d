"""MLflow that is away: a study that it knows goes on, and is mirrored when it comes back."""

import socket
import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raysweep.errors import UserError
from raysweep.space import space
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.tracking import background
from raysweep.tracking.background import Mirroring

TEXT = """\
study: small
trial: {iterations: 400000, method: none, optimizer: {lr: {choice: [1e-4, 1e-3]}}}
search: {rungs: [100000, 200000], trials: 2}
"""


@pytest.fixture
def study(write_space, tmp_path) -> StudyState:
    return StudyState(space.load(write_space(TEXT), "smoke"), Store(str(tmp_path / "store")))


@pytest.fixture
def nowhere() -> str:
    """The address of a server that does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def probe(study: StudyState, number: int, step: int) -> None:
    study.probed(number, step, dict.fromkeys(study.space.probe.measured, 5.0))


def mirrored(uri: str, study: StudyState) -> dict[str, float]:
    """Trial -> the metric that MLflow has of it."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study.space.id)
    runs = client.search_runs([experiment.experiment_id])
    trials = [run.data for run in runs if run.data.tags["raysweep.kind"] == "trial"]
    return {run.tags["raysweep.trial"]: run.metrics[study.metric] for run in trials}


def test_an_address_where_nothing_ever_was_is_a_mistake(study, nowhere):
    with pytest.raises(UserError, match="--tracking-uri"):
        Mirroring(study, nowhere, print)


def test_a_study_that_is_known_goes_on_and_the_next_command_tells_what_was_missed(study, nowhere, tmp_path):
    study.propose({"optimizer.lr": 1e-4})
    told: list[str] = []
    away = Mirroring(study, nowhere, told.append)
    probe(study, 0, 2)
    began = time.monotonic()
    assert not away.finish([], None, patience_s=0.2)
    assert time.monotonic() - began < 5
    assert "told later" in told[0] and "not up to date" in told[-1]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert Mirroring(study, uri, told.append).finish([], None)
    assert mirrored(uri, study) == {"0": 5.0}


def test_a_database_that_is_locked_for_a_while_is_told_when_it_answers(study, tmp_path, monkeypatch):
    """Nothing that the sweep does waits for it."""
    monkeypatch.setattr(background, "RETRY_S", 0.1)
    uri, told = f"sqlite:///{tmp_path / 'mlflow.db'}", []
    mirror = Mirroring(study, uri, told.append)
    database, aside = Path(tmp_path / "mlflow.db"), tmp_path / "aside.db"
    deadline = time.monotonic() + 30
    while not database.exists():
        assert time.monotonic() < deadline
    database.rename(aside)
    database.mkdir()  # as good as a disk that is gone
    threads = threading.active_count()
    for number, rate in enumerate((1e-4, 1e-3)):
        study.propose({"optimizer.lr": rate})
        probe(study, number, 2)
    assert threading.active_count() == threads
    database.rmdir()
    aside.rename(database)
    assert mirror.finish([], None)
    assert mirrored(uri, study) == {"0": 5.0, "1": 5.0}
