"""The lineage of a study: its teachers, those of their checkpoints that taught, and the students of each checkpoint.

Where a single checkpoint comes from is its provenance (`raysweep.report.provenance`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from raysweep.formats import flatten
from raysweep.report import tables
from raysweep.space import runs
from raysweep.space.domains import Point
from raysweep.store import history, provenance
from raysweep.store.history import probe_key
from raysweep.store.records import ProbeRecord
from raysweep.study.state import StudyState
from raysweep.study.summary import StudySummary, TrialSummary, differing_params
from trainables.config import ProbeSpec, TeacherRef

TEACHER_PATHS = ("teacher.method", "teacher.iterations")  # parameters that determine the teacher
RANGES = 12  # most ranges of trial numbers in a cell; the other trials are only counted


@dataclass(frozen=True)
class Student:
    """A trial, and the parameters in which it differs from the defaults, apart from those that name its teacher."""

    trial: TrialSummary
    differs: dict[str, str]

    @property
    def rank(self) -> tuple[bool, int, float, int]:
        """The key that students are sorted by: complete ones first, by their metric; then the others, those with more
        steps first, and with equal steps those with the lower metric first."""
        trial, complete = self.trial, self.trial.state == "COMPLETE"
        value = math.inf if trial.value is None else trial.value
        return (not complete, 0 if complete else -trial.step, value, trial.number)


@dataclass
class Checkpoint:
    """A checkpoint that taught.

    Attributes:
        description: its history (`raysweep.store.history.describe`), whose digest is `key`.
        metrics: measured by the same probe as its students; empty if the store has no such probe.
        students: the trials that it taught, sorted by `Student.rank`.
        pupils: the teachers that it taught.
    """

    step: int
    key: str
    description: dict[str, Any]
    metrics: dict[str, float]
    students: list[Student] = field(default_factory=list)
    pupils: list[Teacher] = field(default_factory=list)

    @property
    def descendants(self) -> int:
        """The number of trials that it taught, or that its pupils taught."""
        return len(self.students) + sum(pupil.descendants for pupil in self.pupils)


@dataclass
class Teacher:
    """Checkpoints of one run, the latest first: each continues the history of the next one in the list."""

    title: str
    checkpoints: list[Checkpoint]
    taught_by: Checkpoint | None = None

    @property
    def steps(self) -> int:
        """The step of its latest checkpoint that taught."""
        return self.checkpoints[0].step

    @property
    def key(self) -> str:
        """The key of that checkpoint."""
        return self.checkpoints[0].key

    @property
    def descendants(self) -> int:
        """The number of trials that its checkpoints taught, directly or through pupils."""
        return sum(checkpoint.descendants for checkpoint in self.checkpoints)


@dataclass
class Lineage:
    """Who taught whom in a study.

    Attributes:
        metric: the name of the deciding metric.
        best: the number of the best trial.
        teachers: those with the most descendants first.
        alone: the trials that have no teacher.
        unavailable: how many trials could not be run.
    """

    study: str
    metric: str
    best: int | None
    teachers: list[Teacher]
    alone: list[Student]
    unavailable: int

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints that taught."""
        return [checkpoint for teacher in self.teachers for checkpoint in teacher.checkpoints]

    @property
    def students(self) -> list[Student]:
        """All trials that were run, without repeats."""
        return [student for checkpoint in self.checkpoints for student in checkpoint.students] + self.alone


def trace(study: StudyState, summary: StudySummary) -> Lineage:
    """The lineage of a study."""
    groups: dict[str | None, list[Student]] = defaultdict(list)  # by the key of the checkpoint that taught them
    chains: dict[str, tuple[list[TeacherRef], ProbeSpec]] = {}  # a checkpoint's key -> itself, its teacher, and so on
    trials = [trial for trial in summary.trials if trial.repeats is None]
    for trial in trials:
        if trial.state != "UNAVAILABLE":
            key = trial.teacher_key
            groups[key].append(_student(trial, study.space.defaults))
            if key is not None and key not in chains:
                state = study.trials[trial.number]
                chains[key] = (runs.teachers(study.run(state)), study.probe(state))
    for students in groups.values():
        students.sort(key=lambda student: student.rank)
    checkpoints: dict[str, Checkpoint] = {}
    taught_by: dict[str, str] = {}  # a checkpoint's key -> the key of the checkpoint that taught it
    for refs, spec in chains.values():
        chain = [_checkpoint(study, ref, spec, checkpoints) for ref in refs]
        taught_by |= {pupil.key: teacher.key for pupil, teacher in pairwise(chain)}
    for key, checkpoint in checkpoints.items():
        checkpoint.students = groups.get(key, [])
    teachers = list(_teachers(checkpoints.values()))
    for teacher in teachers:
        if teacher.key in taught_by:
            teacher.taught_by = checkpoints[taught_by[teacher.key]]
            teacher.taught_by.pupils.append(teacher)
    teachers.sort(key=lambda teacher: (-teacher.descendants, teacher.title, -teacher.steps))
    unavailable = sum(trial.state == "UNAVAILABLE" for trial in trials)
    best = summary.best.number if summary.best else None
    return Lineage(study.space.id, study.metric, best, teachers, groups.get(None, []), unavailable)


def _student(trial: TrialSummary, defaults: Point) -> Student:
    differing = differing_params(trial.params, defaults)
    return Student(trial, {path: value for path, value in differing.items() if not path.startswith(TEACHER_PATHS)})


def _checkpoint(study: StudyState, ref: TeacherRef, spec: ProbeSpec, known: dict[str, Checkpoint]) -> Checkpoint:
    description = history.describe(ref.run, ref.step)
    key = history.key_of(description)
    if key not in known:
        record = study.store.peek(ProbeRecord, probe_key(ref.run, ref.step, spec))
        known[key] = Checkpoint(ref.step, key, description, record.metrics if record else {})
    return known[key]


def _teachers(checkpoints: Iterable[Checkpoint]) -> Iterator[Teacher]:
    """Group checkpoints into lines of training. One that lies on several lines belongs to the longest."""
    families: dict[str, list[Checkpoint]] = defaultdict(list)  # by the history of their first step
    for checkpoint in sorted(checkpoints, key=lambda checkpoint: -checkpoint.step):
        families[_key_at(checkpoint, 1)].append(checkpoint)
    lines: dict[str, list[list[Checkpoint]]] = defaultdict(list)  # by title
    for family in families.values():
        steps = {checkpoint.step for checkpoint in family}
        line_through: dict[str, list[Checkpoint]] = {}  # by the key of each history on the line
        for checkpoint in family:
            if checkpoint.key not in line_through:
                line: list[Checkpoint] = []
                lines[provenance.title(checkpoint.description)].append(line)
                for step in steps:
                    if step <= checkpoint.step:
                        line_through.setdefault(_key_at(checkpoint, step), line)
            line_through[checkpoint.key].append(checkpoint)
    for title, same_title in lines.items():
        differences = _differences([line[0].description for line in same_title])
        for line, differing in zip(same_title, differences, strict=True):
            yield Teacher(", ".join([title, *differing]), line)


def _key_at(checkpoint: Checkpoint, step: int) -> str:
    """The key of the history that the checkpoint's training had at an earlier step."""
    return history.key_of(history.cut(checkpoint.description, step))


def _differences(descriptions: list[dict[str, Any]]) -> list[list[str]]:
    """For each of several histories with one title, the values in which they differ: a seed, a rate, a block."""
    leaves = [_values(description) for description in descriptions]
    names = sorted({name for values in leaves for name in values})
    varied = [name for name in names if len({str(values.get(name)) for values in leaves}) > 1]
    return [[f"{name} {values[name]}" for name in varied if name in values] for values in leaves]


def _values(description: dict[str, Any]) -> dict[str, Any]:
    """The values of a history by name, without its length and its teacher, which the lineage shows itself."""
    values = flatten({key: value for key, value in description.items() if key not in ("phases", "step")})
    for phase in description["phases"]:
        values |= flatten(phase["term"])
    for phase in description["phases"][:-1]:
        values["until"] = phase["until"]
    return values


# --- the table


def markdown(lineage: Lineage) -> str:
    """A Markdown table with a row for each checkpoint that taught; the last row is that of trials without a teacher."""
    metric = lineage.metric
    head = ["teacher", "step", "key", metric, "students", "best", f"its {metric}", "at step", "trials"]
    lines = [
        [*_teacher_cells(teacher, checkpoint, metric), *_student_cells(checkpoint.students, checkpoint.pupils, metric)]
        for teacher in lineage.teachers
        for checkpoint in teacher.checkpoints
    ]
    if lineage.alone:
        lines.append(["none", "", "", "", *_student_cells(lineage.alone, [], metric)])
    return tables.markdown_table(head, lines)


def _teacher_cells(teacher: Teacher, checkpoint: Checkpoint, metric: str) -> list[str]:
    title = teacher.title + (f", taught by {teacher.taught_by.key[:12]}" if teacher.taught_by else "")
    return [title, str(checkpoint.step), checkpoint.key[:12], tables.with_error(checkpoint.metrics, metric)]


def _student_cells(students: list[Student], pupils: list[Teacher], metric: str) -> list[str]:
    best = ["", "", ""]
    if students:
        trial = students[0].trial
        best = [str(trial.number), tables.with_error(trial.metrics, metric), str(trial.step)]
    numbers = number_ranges(sorted(student.trial.number for student in students))
    return [str(len(students)), *best, "; ".join(filter(None, (numbers, pupils_text(pupils))))]


def pupils_text(pupils: list[Teacher]) -> str:
    """The teachers that a checkpoint taught: the title of a single one, else their number."""
    return f"{len(pupils)} teachers" if len(pupils) > 1 else "".join(f"the teacher {pupil.title}" for pupil in pupils)


def number_ranges(numbers: list[int]) -> str:
    """Ascending numbers as ranges: `0–8, 14, 16`. After `RANGES` ranges, the numbers are only counted."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(low) if low == high else f"{low}–{high}" for low, high in ranges[:RANGES]]
    more = sum(high - low + 1 for low, high in ranges[RANGES:])
    return ", ".join(texts) + (f" and {more} more" if more else "")
