"""A store that an earlier version wrote: its studies report, its checkpoints are found, nothing is computed again."""

import json
import shutil
from pathlib import Path

import pytest

from raysweep.commands import report, run
from raysweep.space import runs, space
from raysweep.store.store import Store
from raysweep.study.state import StudyState

DATA = Path(__file__).parents[1] / "data"
SPACE, STUDY = DATA / "store_0.1.yaml", "old-smoke-e6e4608b"  # see store_0.1.md


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A copy, as opening a store may write to it."""
    return shutil.copytree(DATA / "store_0.1", tmp_path / "store")


def test_an_old_store_s_study_reports_the_same_table(storage, capsys):
    table = (storage / "studies" / STUDY / "table.csv").read_bytes()
    (storage / "studies" / STUDY / "table.csv").unlink()
    assert report.main(["old", "--storage", str(storage)]) == 0
    assert (storage / "studies" / STUDY / "table.csv").read_bytes() == table
    assert "Best: trial 0" in capsys.readouterr().out


def test_an_old_store_s_checkpoints_are_found_by_today_s_histories(storage):
    store = Store(str(storage))
    study = StudyState(space.load(SPACE, "smoke", ["search.trials=4"]), store)
    assert study.space.id == STUDY
    ends = {(study.run(trial), trial.step) for trial in study.trials}
    ends |= {(teacher.run, teacher.step) for run, _ in ends for teacher in runs.teachers(run) if _ > 1}
    assert all(store.find(run, step) for run, step in ends)
    assert len(list(store.checkpoints())) == 13


def test_the_same_command_computes_nothing(storage, capsys):
    command = [str(SPACE), "--profile", "smoke", "--set", "search.trials=4", "--storage", str(storage), "--json"]
    assert run.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == {"without_sharing": 27, "computed": 0, "reused": 27}


@pytest.mark.ray
def test_another_study_of_the_same_trials_computes_nothing(storage, capsys):
    options = ["--set", "search.trials=4", "--set", "study=again", "--storage", str(storage), "--json"]
    assert run.main([str(SPACE), "--profile", "smoke", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"]["computed"] == 0 and [trial["state"] for trial in result["trials"]][0] == "COMPLETE"
