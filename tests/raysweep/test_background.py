"""MLflow is unreachable: a study that it knows continues, and is mirrored when MLflow answers again."""

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
from raysweep.tracking.background import BackgroundMirror

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
    """The metric that MLflow has of each trial."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study.space.id)
    runs = client.search_runs([experiment.experiment_id])
    trials = [run.data for run in runs if run.data.tags["raysweep.kind"] == "trial"]
    return {run.tags["raysweep.trial"]: run.metrics[study.metric] for run in trials}


def test_a_new_study_is_refused_if_there_is_no_mlflow(study, nowhere):
    with pytest.raises(UserError, match="--tracking-uri"):
        BackgroundMirror(study, nowhere, print)


def test_a_known_study_continues_and_the_next_command_logs_what_was_missed(study, nowhere, tmp_path):
    study.propose({"optimizer.lr": 1e-4})
    messages: list[str] = []
    away = BackgroundMirror(study, nowhere, messages.append)
    probe(study, 0, 2)
    began = time.monotonic()
    assert not away.finish([], None, timeout_s=0.2)
    assert time.monotonic() - began < 5
    assert "logged later" in messages[0] and "not up to date" in messages[-1]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert BackgroundMirror(study, uri, messages.append).finish([], None)
    assert mirrored(uri, study) == {"0": 5.0}


def test_a_database_that_is_away_for_a_while_is_filled_when_it_is_back(study, tmp_path, monkeypatch):
    """The sweep does not wait for it."""
    monkeypatch.setattr(background, "RETRY_S", 0.1)
    uri, messages = f"sqlite:///{tmp_path / 'mlflow.db'}", []
    mirror = BackgroundMirror(study, uri, messages.append)
    database, aside = Path(tmp_path / "mlflow.db"), tmp_path / "aside.db"
    deadline = time.monotonic() + 30
    while not database.exists():
        assert time.monotonic() < deadline
    database.rename(aside)
    database.mkdir()  # like a disk that is gone
    threads = threading.active_count()
    for number, rate in enumerate((1e-4, 1e-3)):
        study.propose({"optimizer.lr": rate})
        probe(study, number, 2)
    assert threading.active_count() == threads
    database.rmdir()
    aside.rename(database)
    assert mirror.finish([], None)
    assert mirrored(uri, study) == {"0": 5.0, "1": 5.0}
