"""The lineage of a whole study: which checkpoint of which teacher taught which students, and how these fared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

from raysweep import history, results, runs, svg, tables
from raysweep.results import Row
from raysweep.study import Study
from raysweep.trials import TrialState
from raysweep.words import short
from raysweep.work import probe_key
from trainables.spec import TeacherRef

MOST = 12  # students of one checkpoint that are drawn or named
WIDTH, ROW, TOP, GAP = 1080, 20, 66, 16  # pixels
_START, _END, _TRUNK, _NAMES, _VALUES = 165, 440, 500, 545, 1060  # columns
_FITS = 44  # characters of what differs
# Okabe and Ito's colours, and a shape for each, for those who see no colours.
_LOOKS = {
    "best": ("#009E73", "M0 -7 l2 5 5 0 -4 3 2 5 -5 -3 -5 3 2 -5 -4 -3 5 0 z", "best"),
    "COMPLETE": ("#0072B2", "M-5 0 a5 5 0 1 0 10 0 a5 5 0 1 0 -10 0 z", "complete"),
    "PRUNED": ("#767676", "M-5 -4 h10 l-5 9 z", "pruned"),
    "FAILED": ("#D55E00", "M-6 -4 l2 -2 4 4 4 -4 2 2 -4 4 4 4 -2 2 -4 -4 -4 4 -2 -2 4 -4 z", "failed"),
    "RUNNING": ("#B37600", "M-4 -4 h8 v8 h-8 z", "unfinished"),
}


@dataclass
class Student:
    """A trial. `value` is its last metric, infinite where it has none."""

    row: Row
    told: str
    value: float
    metric: str
    best: bool = False


@dataclass
class Age:
    """A teacher's checkpoint and whom it taught, the best first. `metric` is what a probe of it said, if there was
    one."""

    step: int
    key: str
    metric: str
    students: list[Student] = field(default_factory=list)


@dataclass
class Teacher:
    """One training whose checkpoints taught. `taught_by` says who taught it, if anybody did."""

    kind: str
    key: str
    taught_by: str
    ages: list[Age] = field(default_factory=list)


@dataclass
class Family:
    """A study's teachers, and the trials that had none."""

    study: str
    metric: str
    teachers: list[Teacher]
    alone: list[Student]


def trace(study: Study, result: dict[str, Any]) -> Family:
    """Who was taught by whom. `result` is the study's `results.summary`."""
    teachers: dict[str, Teacher] = {}
    ages: dict[str, Age] = {}
    alone: list[Student] = []
    best = result["best"]["trial"] if result["best"] else None
    for row in result["trials"]:
        if row["repeats"] is not None or row["state"] == "UNAVAILABLE":
            continue
        trial = study.trials[row["trial"]]
        student = _student(study, row, row["trial"] == best)
        found = runs.teachers(study.run(trial))
        if not found:
            alone.append(student)
            continue
        if row["teacher_key"] not in ages:
            key = history.key(found[0].run, found[0].run.steps)
            teacher = teachers.setdefault(key, Teacher(_kind(found[0]), key, _told(found[1]) if found[1:] else ""))
            ages[row["teacher_key"]] = Age(found[0].step, row["teacher_key"], _probed(study, trial, found[0]))
            teacher.ages.append(ages[row["teacher_key"]])
        ages[row["teacher_key"]].students.append(student)
    for students in [alone, *(age.students for age in ages.values())]:
        students.sort(key=lambda one: (not one.best, -one.row["steps"], one.value))
    for teacher in teachers.values():
        teacher.ages.sort(key=lambda age: age.step)
    return Family(study.space.id, study.metric, list(teachers.values()), alone)


def _student(study: Study, row: Row, best: bool) -> Student:
    metric = tables.with_error(row["metrics"], study.metric)
    value = row["metrics"].get(study.metric, float("inf"))
    return Student(row, results.changed(study, row["params"]), value, metric, best)


def _probed(study: Study, trial: TrialState, teacher: TeacherRef) -> str:
    record = study.store.record("probes", probe_key(teacher.run, teacher.step, study.probe(trial)))
    return tables.with_error(record["metrics"], study.metric) if record else ""


def _kind(teacher: TeacherRef) -> str:
    return teacher.run.phases[0].term.kind


def _told(teacher: TeacherRef) -> str:
    return f"{_kind(teacher)} at {short(teacher.step)}"


# --- as a table


def markdown(family: Family) -> str:
    """A line for each checkpoint that taught."""
    head = ["teacher", "at step", "checkpoint", family.metric, "students", f"best of them: {family.metric}", "trials"]
    lines = [head, ["---"] * len(head)]
    for teacher in family.teachers:
        for age in teacher.ages:
            kind = f"{teacher.kind}, taught by {teacher.taught_by}" if teacher.taught_by else teacher.kind
            lines.append([kind, str(age.step), age.key[:12], age.metric, *_counted(age.students)])
    if family.alone:
        lines.append(["none", "", "", "", *_counted(family.alone)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _counted(students: list[Student]) -> list[str]:
    first = students[0]
    numbers = sorted(student.row["trial"] for student in students)
    shown = ", ".join(map(str, numbers[:MOST])) + (f", … {len(numbers) - MOST} more" if len(numbers) > MOST else "")
    return [str(len(students)), f"trial {first.row['trial']}: {first.metric or '–'}", shown]


# --- as a picture


def drawing(family: Family) -> str:
    """An SVG: teachers' checkpoints as lines of training from step 0, to their right the students that they taught."""
    groups = [(teacher, age, age.students) for teacher in family.teachers for age in teacher.ages]
    heights = [max(2 * ROW, ROW * len(list(_lines(students)))) for _, _, students in groups]
    alone = ROW * len(list(_lines(family.alone)))
    height = TOP + sum(heights) + GAP * len(heights) + (alone + GAP if alone else 0) + 40
    picture = svg.sheet(WIDTH, height)
    svg.write(picture, 20, 24, f"{family.study}: which teacher checkpoint taught whom", size=15, weight="bold")
    for x, told, anchor in (
        (20, "teacher", "start"),
        (_START, "trained to step", "start"),
        (_NAMES, "student: how it differs from the defaults", "start"),
        (_VALUES, f"{family.metric} (lower is better)", "end"),
    ):
        svg.write(picture, x, 48, told, size=11, colour=svg.QUIET, anchor=anchor)
    longest = max((age.step for _, age, _ in groups), default=1)
    y, spine = float(TOP), dict[str, float]()
    for (teacher, age, students), tall in zip(groups, heights, strict=True):
        middle = y + tall / 2
        if teacher.key in spine:  # the same training, further: what is drawn above is its beginning
            svg.line(picture, (_START, spine[teacher.key]), (_START, middle), "#E69F00", 2)
        else:
            svg.write(picture, 20, middle, teacher.kind, weight="bold")
            under = f"by {teacher.taught_by}" if teacher.taught_by else f"run {teacher.key[:8]}"
            svg.write(picture, 20, middle + 15, under, size=10, colour=svg.QUIET)
        spine[teacher.key] = middle
        _age(picture, age, middle, longest)
        _group(picture, students, y, middle)
        y += tall + GAP
    if family.alone:
        svg.write(picture, 20, y + 14, "no teacher", weight="bold")
        _group(picture, family.alone, y, None)
    _legend(picture, height - 14)
    return svg.finish(picture)


def _age(picture: ET.Element, age: Age, y: float, longest: int) -> None:
    x = _START + (_END - _START) * age.step / longest
    svg.line(picture, (_START, y), (x, y), "#E69F00", 4)
    node = ET.SubElement(picture, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="6", fill="white", stroke="#E69F00")
    node.set("stroke-width", "3")
    ET.SubElement(node, "title").text = f"checkpoint {age.key} at step {age.step}"
    svg.write(picture, x, y - 11, short(age.step), size=11, weight="bold", anchor="middle")
    if age.metric:
        svg.write(picture, x, y + 19, age.metric, size=10, anchor="middle")
    svg.line(picture, (x + 6, y), (_TRUNK, y), svg.LINE)


def _lines(students: list[Student]) -> Iterator[Student | int]:
    """The students that are drawn, and how many more there are."""
    shown = len(students) if len(students) <= MOST + 1 else MOST  # the line that says "1 more" can as well show it
    yield from students[:shown]
    if shown < len(students):
        yield len(students) - shown


def _group(picture: ET.Element, students: list[Student], top: float, middle: float | None) -> None:
    places = [top + ROW * (number + 0.5) for number in range(len(list(_lines(students))))]
    if middle is not None:
        aside = middle - (places[0] + places[-1]) / 2  # a group that is lower than its teacher's words
        places = [place + aside for place in places]
        svg.line(picture, (_TRUNK, min(places[0], middle)), (_TRUNK, max(places[-1], middle)), svg.LINE)
    for place, student in zip(places, _lines(students), strict=True):
        if middle is not None:
            svg.line(picture, (_TRUNK, place), (_TRUNK + 16, place), svg.LINE)
        if isinstance(student, int):
            svg.write(picture, _NAMES, place + 4, f"… and {student} more", colour=svg.QUIET)
        else:
            _draw(picture, student, place)


def _draw(picture: ET.Element, student: Student, y: float) -> None:
    row = student.row
    colour, shape, word = _LOOKS["best" if student.best else row["state"]]
    _mark(picture, _TRUNK + 26, y, colour, shape)
    told = student.told if len(student.told) <= _FITS else f"{student.told[: _FITS - 1]}…"
    name = svg.write(picture, _NAMES, y + 4, "", weight="bold" if student.best else "normal")
    bold = ET.SubElement(name, "tspan", {"font-weight": "bold"})
    bold.text, bold.tail = f"trial {row['trial']} ", told
    full = f"trial {row['trial']}: {student.told}; {word}, {row['reason']}; checkpoint {row['history_key']}"
    ET.SubElement(name, "title").text = full
    at = "" if row["state"] == "COMPLETE" else f"  at {short(row['steps'])}"
    svg.write(
        picture, _VALUES, y + 4, f"{student.metric}{at}", anchor="end", weight="bold" if student.best else "normal"
    )


def _legend(picture: ET.Element, y: float) -> None:
    x = float(_NAMES)
    for colour, shape, word in _LOOKS.values():
        _mark(picture, x, y - 4, colour, shape)
        svg.write(picture, x + 10, y, word, size=11)
        x += 34 + 6.5 * len(word)


def _mark(picture: ET.Element, x: float, y: float, colour: str, shape: str) -> None:
    ET.SubElement(picture, "path", d=shape, fill=colour, transform=f"translate({x:.1f} {y:.1f})")
