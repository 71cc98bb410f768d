"""A space that has changed under the name of its study: refused field by field, or extended."""

import pytest
import yaml

from raysweep.errors import UserError
from raysweep.space import space
from raysweep.store.store import Store
from raysweep.study.extension import changed_from, difference, refuse_changed
from raysweep.study.state import StudyState

TEXT = """\
study: growing
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {uniform: [1.0, 60.0], default: 30.0}
    teacher: {method: vae_align, iterations: 200000}
search: {rungs: [100000, 200000], trials: 6}
enqueue:
  - {set: {}, fid: 22.91}
"""


@pytest.fixture
def load(write_space):
    def with_changes(changes: dict | None = None, *overrides: str):
        text = yaml.safe_load(TEXT)
        for path, value in (changes or {}).items():
            *outer, last = path.split(".")
            node = text
            for key in outer:
                node = node[key]
            node[last] = value
        return space.load(write_space(yaml.safe_dump(text)), "smoke", list(overrides))

    return with_changes


def test_a_changed_space_is_refused_with_what_has_changed(load, tmp_path):
    store = Store(str(tmp_path / "store"))
    StudyState(load(), store)
    changed = load({"search.rungs": [100000], "trial.method.guidance_scale": {"uniform": [1.0, 30.0], "default": 1.0}})
    with pytest.raises(UserError) as refused:
        refuse_changed(changed, store)
    lines = str(refused.value).splitlines()
    assert "space.yaml:" in lines[0] and "study" in lines[0] and "growing-smoke" in lines[0]
    assert any("search.rungs: [100000, 200000] -> [100000]" in line for line in lines), lines
    assert any("guidance_scale" in line and "60" in line and "30" in line for line in lines)
    assert "--extend" in lines[-1] and "--set study=NAME" in lines[-1]


@pytest.mark.parametrize("override", ["launch.workers=1", "search.trials=30", "launch.grace_s=5"])
def test_launch_and_the_number_of_trials_may_change(load, tmp_path, override):
    store = Store(str(tmp_path / "store"))
    StudyState(load(), store)
    refuse_changed(load(None, override), store)
    assert changed_from(load(None, override), store) == []


def test_another_name_and_another_profile_are_other_studies(load, tmp_path):
    store = Store(str(tmp_path / "store"))
    StudyState(load(), store)
    another = load({"study": "another", "search.rungs": [100000]})
    refuse_changed(another, store)
    assert changed_from(another, store) == []


def test_the_same_space_differs_in_nothing(load):
    assert difference(load().resolved, load().resolved) == []
    assert difference(load().resolved, load(None, "search.scheduler.eta=4").resolved) == [
        "search.scheduler.eta: 2 -> 4"
    ]


def test_what_was_found_in_the_old_space_is_tried_in_the_new_one(load, tmp_path):
    store = Store(str(tmp_path / "store"))
    old = StudyState(load(), store)
    for scale in (7.0, 50.0):
        old.propose({"method.guidance_scale": scale})
    narrowed = load({"trial.method.guidance_scale": {"uniform": [1.0, 30.0], "default": 30.0}})
    new = StudyState(narrowed, store, extends=changed_from(narrowed, store))
    inherited = [point["method.guidance_scale"] for point in new.inherited]
    assert 7.0 in inherited and 50.0 not in inherited  # the space has no such point any more
    assert changed_from(narrowed, store) == []  # it is a study of its own now
    further = load({"trial.method.guidance_scale": {"uniform": [1.0, 20.0], "default": 15.0}})
    assert changed_from(further, store) == [narrowed.id]  # and its predecessor has been extended
