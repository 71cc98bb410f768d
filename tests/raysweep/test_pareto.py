"""The front of a set of points, and of a study's trials."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from raysweep.report import report
from raysweep.space import space
from raysweep.store.store import Store
from raysweep.study.pareto import front
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize

NAN = float("nan")
NUMBERS = st.integers(-3, 3).map(float) | st.sampled_from([math.inf, -math.inf, NAN]) | st.floats()  # ties are common
DIRECTIONS = st.lists(st.sampled_from(["falls", "rises"]), min_size=1, max_size=3)


@st.composite
def clouds(draw):
    directions = draw(DIRECTIONS)
    return draw(st.lists(st.tuples(*(NUMBERS for _ in directions)), max_size=12)), directions


def beats(one, other, directions) -> bool:
    """Domination, written differently from the code."""
    better = [a < b if way == "falls" else a > b for a, b, way in zip(one, other, directions, strict=True)]
    same = [a == b for a, b in zip(one, other, strict=True)]
    return any(better) and all(b or s for b, s in zip(better, same, strict=True))


def known(point) -> bool:
    return not any(math.isnan(value) for value in point)


@given(clouds())
def test_no_member_is_dominated_and_every_other_point_is_dominated_by_a_member(cloud):
    points, directions = cloud
    members = front(points, directions)
    assert members == sorted(set(members)) and all(known(points[member]) for member in members)
    for place, point in enumerate(points):
        if place in members:
            assert not any(beats(other, point, directions) for other in points)
        elif known(point):
            assert any(beats(points[member], point, directions) for member in members)
    assert bool(members) == any(map(known, points))


def test_equal_points_are_in_the_front_and_nan_is_not():
    points = [(1.0, 2.0), (1.0, 2.0), (1.0, 3.0), (NAN, 0.0), (2.0, 1.0), (0.0, NAN)]
    assert front(points, ["falls", "falls"]) == [0, 1, 4]
    assert front(points, ["falls", "rises"]) == [2]
    assert front([], ["falls"]) == []


TEXT = """\
study: tradeoffs
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 15.0, 30.0]}
    teacher: {method: {choice: [vae_align, none]}, iterations: {choice: [50000, 100000, 400000]}}
search: {mode: reproduce}
enqueue:
  - {set: {}}
  - {set: {method.guidance_scale: 15.0}}
  - {set: {method.teacher.iterations: 100000}}
  - {set: {method.teacher.iterations: 400000}}
  - {set: {}}
"""


def study_with(write_space, tmp_path, *overrides: str) -> StudyState:
    """The second trial stops early, the fourth has the longest trained teacher and the best FID, the last repeats the
    first."""
    study = StudyState(space.load(write_space(TEXT), "smoke", list(overrides)), Store(str(tmp_path / "store")))
    values = [(50.0, 3.0), (90.0, 9.0), (55.0, 4.0), (40.0, 2.0)]
    for number, row in enumerate(study.space.rows):
        trial = study.propose(study.space.trial(row.set)[1], number)
        if trial.repeats is None:
            for step in study.rungs(trial)[: 1 if number == 1 else None]:
                study.probed(number, step, dict(zip(study.space.probe.measured, values[number], strict=False)))
    return study


def test_a_study_s_fronts_are_in_the_summary_and_drawn(write_space, tmp_path):
    study = study_with(write_space, tmp_path)
    summary = summarize(study)
    members = {"steps": [0, 1, 3], study.space.probe.name("is"): [0, 1, 2, 3]}
    assert {name: front.members for name, front in summary.pareto.items()} == members
    assert json.loads(json.dumps(summary.as_dict()))["pareto"] == members
    written = {path.name: path for path in report.write(study, summary)}
    assert written["pareto.png"].read_bytes().startswith(b"\x89PNG")


def test_without_the_inception_score_there_is_one_front(write_space, tmp_path):
    study = study_with(write_space, tmp_path, "probe.metrics=[fid]")
    assert list(summarize(study).pareto) == ["steps"]
    assert "pareto.png" in {path.name for path in report.write(study, summarize(study))}


def test_a_study_without_a_probe_has_an_empty_front(write_space, tmp_path):
    study = StudyState(space.load(write_space(TEXT), "smoke"), Store(str(tmp_path / "store")))
    assert summarize(study).pareto["steps"].members == []
    report.write(study, summarize(study))
