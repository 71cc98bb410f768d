"""`import raysweep`: load, plan, sweep, open_study, as a notebook uses them."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import lanes
import pytest
from matplotlib.figure import Figure

import raysweep
from raysweep.report.study import Study
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from trainables import snapshot

ROOT = Path(__file__).parents[2]
TABLE5 = ROOT / "search_spaces" / "table5.yaml"
SMALL = {"search.trials": 3, "trial.iterations": 200_000, "search.rungs": [50_000, 100_000]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory, cache) -> Path:
    """A store with one small study, really trained, without Ray."""
    folder = tmp_path_factory.mktemp("interface") / "runs"
    folder.mkdir()
    (folder / "cache").symlink_to(cache)
    space = raysweep.load(TABLE5, profile="smoke", overrides=SMALL)
    lanes.sweep(StudyState(space, Store(str(folder))), cache)
    return folder


@pytest.fixture
def study(storage) -> Study:
    return raysweep.open_study(storage, "table5")


def test_a_space_is_loaded_with_values_as_python_has_them():
    space = raysweep.load(TABLE5, profile="laptop", overrides={"search.trials": 5, "study": "mine"})
    assert (space.study, space.search.trials, space.profile) == ("mine", 5, "laptop")
    texts = raysweep.load(str(TABLE5), "laptop", {"trial.method.guidance_scale": 7})
    assert all(texts.trial(point)[0].method.guidance_scale == 7 for point in texts.points())


@pytest.mark.parametrize(
    "overrides, message", [({"search.trials": 0}, "search.trials"), ({"": 1}, "dotted key"), ({"studdy": 1}, "studdy")]
)
def test_a_wrong_override_is_one_line(overrides, message):
    with pytest.raises(raysweep.UserError, match=message) as refused:
        raysweep.load(TABLE5, "smoke", overrides)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("overrides['")


def test_a_wrong_profile_is_named_as_it_was_written():
    with pytest.raises(raysweep.UserError, match="^profile=huge: no such profile; known: cluster, laptop, smoke$"):
        raysweep.load(TABLE5, "huge")


def test_a_plan_counts_what_sharing_saves():
    table5 = raysweep.load(TABLE5)
    alone = raysweep.plan(table5).grid
    assert alone.together.steps < alone.apart.steps
    table4 = raysweep.load(ROOT / "search_spaces" / "table4.yaml")
    both = raysweep.plan(table5, table4).grid.together.steps
    assert both < alone.together.steps + raysweep.plan(table4).grid.together.steps


def test_a_study_is_read(study, storage):
    assert study.name.startswith("table5-smoke-") and study.metric in study.best.metrics
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    complete = [trial for trial in study.trials if trial.state == "COMPLETE" and trial.repeats is None]
    assert study.best.value == min(trial.value for trial in complete)
    frame = study.frame()
    assert list(frame["trial"]) == [trial.number for trial in study.trials]
    assert frame.loc[study.best.number, study.metric] == study.best.value
    assert len(study.probes()) == sum(len(trial.probes) for trial in study.trials)
    assert study.markdown() == study._repr_markdown_() and "\\toprule" in study.latex()
    assert repr(study).startswith("<Study table5-smoke-")


def test_a_study_s_pictures_are_figures(study):
    for picture in (study.plots.curves(), study.plots.pareto(), study.plots.samples(), study.plots.against_reference()):
        assert isinstance(picture, Figure)
    assert study.plots.lineage().startswith("<svg")


def test_a_trial_s_checkpoint_is_a_folder_that_loads(study):
    folder = study.checkpoint(study.best)
    assert folder == study.checkpoint(study.best.number) and {file.name for file in folder.iterdir()} >= {
        "snapshot.safetensors"
    }
    assert snapshot.load(folder).backbone is not None
    early = study.checkpoint(study.best, step=min(study.best.probes))
    assert early != folder
    with pytest.raises(raysweep.UserError, match="no checkpoint"):
        study.checkpoint(study.best, step=999)
    with pytest.raises(raysweep.UserError, match="no trial 99"):
        study.checkpoint(99)


def test_an_unknown_study_is_refused(storage, tmp_path):
    with pytest.raises(raysweep.UserError, match="no study 'table6'"):
        raysweep.open_study(storage, "table6")


@pytest.mark.ray
def test_all_four_work_after_every_module_has_been_imported(tmp_path):
    names = [module.name for module in pkgutil.walk_packages(raysweep.__path__, "raysweep.")]
    assert len(names) > 80
    code = f"""
import importlib, raysweep
for name in {[name for name in names if not name.endswith(("__main__", "raysweep.run"))]!r}:
    importlib.import_module(name)
space = raysweep.load({str(TABLE5)!r}, profile="smoke", overrides={{"search.trials": 1, "trial.iterations": 100_000}})
assert raysweep.plan(space).grid.together.steps > 0
study = raysweep.sweep(space, storage={str(tmp_path / "runs")!r})
assert study.best.number == 0 and study.checkpoint(0).is_dir()
assert raysweep.open_study({str(tmp_path / "runs")!r}, "table5").best.value == study.best.value
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
