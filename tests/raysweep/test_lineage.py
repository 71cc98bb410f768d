"""The lineage of a study: as data, as a table, and as a picture in which no text overlaps another."""

import dataclasses
import itertools
import random
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties, findfont
from PIL import ImageFont

from raysweep.report import lineage, lineage_svg, report
from raysweep.report.lineage import Lineage, Student, number_ranges
from raysweep.space import runs, space
from raysweep.space.domains import random_point
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize

SVG = "{http://www.w3.org/2000/svg}"
TEXT = """\
study: family
trial:
  iterations: {choice: [300000, 400000], default: 400000}
  method:
    choice:
      - kind: self_guided
        guidance_scale: {choice: [1.0, 15.0, 30.0], default: 30.0}
        layers: {choice: [[8, 6], [8, 4]]}
        teacher: {method: {choice: [vae_align, none, repa]}, iterations: {choice: [200000, 100000, 350000]}}
      - none
search: {mode: reproduce}
enqueue:
  - {set: {}}
  - {set: {method.guidance_scale: 15.0, iterations: 300000}}
  - {set: {method.layers: [8, 4]}}
  - {set: {method.teacher.iterations: 350000, iterations: 300000}}
  - {set: {method.teacher.iterations: 100000}}
  - {set: {method.teacher.method: none}}
  - {set: {method: none}}
  - {set: {}}
"""


def studied(write_space, tmp_path, values=(50.0, 60.0, 45.0, 70.0, 80.0, 90.0, 100.0), text=TEXT) -> StudyState:
    """All rows are trained to their ends, except the second, now at its first rung, and the fifth, which failed."""
    study = StudyState(space.load(write_space(text), "smoke"), Store(str(tmp_path / "store")))
    for number, row in enumerate(study.space.rows):
        trial = study.propose(study.space.trial(row.set)[1], number)
        if trial.repeats is not None:
            continue
        for step in study.rungs(trial)[: 1 if number == 1 else None]:
            if number == 4:
                study.fail(number, "loss is <nan> & \x00\x1b[31m")
                break
            study.probed(number, step, dict.fromkeys(study.space.probe.reported, values[number]))
    return study


def lineage_of(study: StudyState) -> Lineage:
    return lineage.trace(study, summarize(study))


def taught_by_step(family: Lineage) -> dict:
    """The trials that each checkpoint taught, by the checkpoint's title and step."""
    return {
        (teacher.title, checkpoint.step): [student.trial.number for student in checkpoint.students]
        for teacher in family.teachers
        for checkpoint in teacher.checkpoints
    }


def test_each_trial_hangs_on_the_checkpoint_that_taught_it(write_space, tmp_path):
    """A teacher is the same line of training, however long the student is that it is trained with."""
    study = studied(write_space, tmp_path)
    family = lineage_of(study)
    assert taught_by_step(family) == {
        ("SiT-T/2, vae_align", 7): [3],
        ("SiT-T/2, vae_align", 4): [2, 0, 1],  # better ones first, incomplete ones last
        ("SiT-T/2, vae_align", 2): [4],
        ("SiT-T/2, none", 4): [5],
    }
    assert [student.trial.number for student in family.alone] == [6] and family.best == 2
    keys = {
        student.trial.number: checkpoint.key for checkpoint in family.checkpoints for student in checkpoint.students
    }
    for number, key in keys.items():
        (teacher,) = runs.teachers(study.run(study.trials[number]))
        assert history.key(teacher.run, teacher.step) == key
    assert family.students[1].trial.history_key == history.key(study.run(study.trials[2]), 8)
    assert {student.trial.number: student.differs for student in family.students} == {
        0: {},
        1: {"guidance_scale": "15", "iterations": "300000"},
        2: {"layers": "8 → 4"},
        3: {"iterations": "300000"},
        4: {},
        5: {},
        6: {"method": "none"},
    }


def test_a_checkpoint_s_metric_is_shown_if_it_was_probed_like_its_student(write_space, tmp_path):
    study = studied(write_space, tmp_path)
    (teacher,) = runs.teachers(study.run(study.trials[0]))
    metrics = {study.metric: 77.25, f"{study.metric}_se": 1.5}
    key = probe_key(teacher.run, teacher.step, study.probe(study.trials[0]))
    study.store.put_record(key, ProbeRecord(metrics))
    family = lineage_of(study)
    assert [checkpoint.metrics for checkpoint in family.checkpoints] == [{}, metrics, {}, {}]
    assert "77.25 ± 1.50" in lineage.markdown(family) and "77.25 ± 1.50" in lineage_svg.drawing(family)


def test_the_table_has_a_row_for_each_checkpoint(write_space, tmp_path):
    family = lineage_of(studied(write_space, tmp_path))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lineage.markdown(family).splitlines()]
    key = family.checkpoints[1].key[:12]
    assert lines[3] == ["SiT-T/2, vae_align", "4", key, "", "3", "2", "45.00 ± 45.00", "8", "0–2"]
    assert lines[4][4:] == ["1", "4", "", "0", "4"]
    assert lines[-1] == ["none", "", "", "", "1", "6", "100.00 ± 100.00", "8", "6"]


NESTED = """\
study: nested
trial:
  seed: {choice: [0, 1]}
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 15.0, 30.0], default: 30.0}
    stop: {choice: [50000, 100000, never], default: 100000}
    teacher:
      iterations: {choice: [200000, 150000, 400000]}
      method:
        choice:
          - vae_align
          - {kind: self_guided, teacher: {method: vae_align, iterations: {choice: [200000, 100000]}}}
search: {trials: 60, rungs: [100000, 200000]}
"""


@pytest.fixture
def nested(write_space, tmp_path) -> StudyState:
    study = StudyState(space.load(write_space(NESTED), "smoke"), Store(str(tmp_path / "store")))
    chance = random.Random(0)
    for _ in range(60):
        trial = study.propose(random_point(study.space.tree, chance))
        for step in study.rungs(trial):
            if not trial.ended:
                values = (chance.uniform(9000, 20000), 142.5, 7.0, 0.1)
                study.probed(trial.number, step, dict(zip(study.space.probe.reported, values, strict=True)))
    for trial in study.distinct[::3]:
        for ref in runs.teachers(study.run(trial)):
            metrics = dict(zip(study.space.probe.reported, (3412.25, 142.5, 7.0, 0.1), strict=True))
            key = probe_key(ref.run, ref.step, study.probe(trial))
            study.store.put_record(key, ProbeRecord(metrics))
    return study


def test_a_teacher_s_teacher_is_there_and_seeds_make_different_teachers(nested):
    family = lineage_of(nested)
    assert sum(len(checkpoint.students) for checkpoint in family.checkpoints) == len(nested.distinct)
    assert {teacher.title for teacher in family.teachers} == {
        f"SiT-T/2, {kind}, seed {seed}" for kind, seed in itertools.product(("vae_align", "self_guided"), (0, 1))
    }
    for teacher in family.teachers:
        if "self_guided" in teacher.title:
            assert teacher.taught_by is not None and teacher in teacher.taught_by.pupils
            assert teacher.taught_by.description["seed"] == teacher.checkpoints[0].description["seed"]
            assert f"taught by {teacher.taught_by.key[:12]}" in lineage.markdown(family)
        else:
            assert teacher.taught_by is None
    assert "the teacher SiT-T/2, self_guided, seed 1" in lineage.markdown(family)


def test_repeats_and_rows_that_cannot_be_run_are_no_students(write_space, tmp_path):
    study = studied(write_space, tmp_path)
    assert study.trials[7].repeats == 0
    study.refuse(study.space.trial({"method.teacher.method": "repa"})[1], 7, "no such encoder")
    family = lineage_of(study)
    assert [student.trial.number for student in family.students] == [3, 2, 0, 1, 4, 5, 6] and family.unavailable == 1
    assert "1 row could not be run here" in lineage_svg.drawing(family)


def test_numbers_are_written_as_ranges_and_counted_when_many():
    assert number_ranges([]) == ""
    assert number_ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert number_ranges(list(range(0, 60, 2))) == f"{', '.join(map(str, range(0, 24, 2)))} and 18 more"


# --- the picture


def texts(picture: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture).iter(f"{SVG}text"))


def box(text: ElementTree.Element) -> tuple[float, float, float, float]:
    """The left, top, right and bottom of a text, in the widest of the usual fonts."""
    size = float(text.attrib["font-size"])
    font = ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=text.attrib["font-weight"])), 100)
    wide = font.getlength(text.text or "") * size / 100
    left = float(text.attrib["x"]) - {"start": 0.0, "middle": wide / 2, "end": wide}[text.attrib["text-anchor"]]
    base = float(text.attrib["y"])
    return left, base - 0.76 * size, left + wide, base + 0.24 * size


def check(picture: str) -> None:
    """Every text is on the sheet, and no two overlap."""
    root = ElementTree.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [(box(text), text.text) for text in texts(picture) if text.text]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, text
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)


def more(family: Lineage, count: int) -> Lineage:
    """The same lineage, with so many students of its first checkpoint, in a study of thousands."""
    (first, *_) = family.students
    differs = {"guidance_scale": "59.1234", "layers": "10 → 6", "weight": "0.123456", "stop": "200000"}
    metrics = {family.metric: 12345.678, f"{family.metric}_se": 123.4}
    trials = [
        dataclasses.replace(first.trial, number=10_000 + number, probes={first.trial.step: metrics})
        for number in range(count)
    ]
    others = [Student(trial, differs) for trial in trials]
    family.checkpoints[0].students = others
    return dataclasses.replace(family, best=10_000)


@pytest.mark.parametrize(("count", "drawn"), [(12, 12), (13, 13), (14, 12), (1000, 12)])
def test_of_many_students_a_dozen_are_drawn(write_space, tmp_path, count, drawn):
    family = more(lineage_of(studied(write_space, tmp_path)), count)
    picture = lineage_svg.drawing(family)
    check(picture)
    shown = [text.text for text in texts(picture)]
    assert sum(text.isdecimal() and int(text) >= 10_000 for text in shown if text) == drawn
    rest = [text for text in shown if text and text.startswith("…")]
    assert rest == ([f"… and {count - drawn} more, the best of them 12345.68 ± 123.40 at 6"] if count > drawn else [])
    assert f"{count:,} students" in shown


def test_of_many_checkpoints_those_of_most_students_are_drawn_and_that_of_the_best(write_space, tmp_path):
    family = lineage_of(studied(write_space, tmp_path))
    teacher, best = family.teachers[0], family.checkpoints[1]
    for number in range(100):
        students = [Student(dataclasses.replace(student.trial, number=1000 + number), {}) for student in best.students]
        teacher.checkpoints.append(dataclasses.replace(best, step=300 + number, students=students * 2))
    picture = lineage_svg.drawing(family)
    check(picture)
    shown = [text.text for text in texts(picture)]
    assert "best: trial 2" in shown and shown.count("6 students") == lineage_svg.CHECKPOINTS - 1
    assert "… and 80 more checkpoints that taught 465 trials" in shown


def test_states_have_shapes_and_texts_and_keys_are_complete(write_space, tmp_path):
    study = studied(write_space, tmp_path)
    family, picture = lineage_of(study), lineage_svg.drawing(lineage_of(study))
    check(picture)
    shown = [text.text for text in texts(picture)]
    assert {"best: trial 2", "5 complete", "1 failed", "1 unfinished"} <= set(shown)
    assert {"iterations 300K, ω 15", "8 → 4", "without a teacher", "failed"} <= set(shown)
    titles = [title.text or "" for title in ElementTree.fromstring(picture).iter(f"{SVG}title")]
    for key in [checkpoint.key for checkpoint in family.checkpoints] + [
        student.trial.history_key for student in family.students
    ]:
        assert any(key in title for title in titles)
    assert any("loss is <nan> &" in title for title in titles)


def test_teachers_of_teachers_are_drawn(nested):
    picture = lineage_svg.drawing(lineage_of(nested))
    check(picture)
    shown = [text.text for text in texts(picture)]
    assert "taught the teacher SiT-T/2, self_guided, seed 0" in shown
    assert "SiT-T/2, self_guided, seed 0, taught at 4 by vae_align" in shown


def test_a_study_with_nothing_yet_and_one_without_teachers_are_drawn(write_space, tmp_path):
    plain = "study: plain\ntrial: {optimizer: {lr: {choice: [1e-4, 1e-3]}}}\nenqueue: [{set: {}}]\n"
    empty = StudyState(space.load(write_space(plain), "smoke"), Store(str(tmp_path / "empty")))
    check(lineage_svg.drawing(lineage_of(empty)))
    assert len(lineage.markdown(lineage_of(empty)).splitlines()) == 2
    study = studied(write_space, tmp_path, text=plain)
    check(lineage_svg.drawing(lineage_of(study)))
    assert lineage_of(study).teachers == [] and len(lineage_of(study).alone) == 1


def test_the_report_has_the_lineage_as_picture_and_as_table(write_space, tmp_path):
    study = studied(write_space, tmp_path)
    written = {path.name: path for path in report.write(study, summarize(study))}
    assert written["lineage.svg"].read_text(encoding="utf-8") == lineage_svg.drawing(lineage_of(study))
    assert written["lineage.md"].read_text(encoding="utf-8") == lineage.markdown(lineage_of(study))
