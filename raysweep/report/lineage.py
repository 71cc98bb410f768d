"""Who taught whom in a study: its teachers, the checkpoints of them that taught, and the students of each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from raysweep.formats import flatten
from raysweep.report import tables
from raysweep.space import runs
from raysweep.space.domains import Point
from raysweep.store import history, provenance
from raysweep.store.history import probe_key
from raysweep.study import summary
from raysweep.study.state import StudyState
from raysweep.study.summary import Row
from trainables.config import ProbeSpec, TeacherRef

OF_THE_TEACHER = ("teacher.method", "teacher.iterations")  # parameters that say who teaches
RANGES = 12  # of trial numbers in a cell; the rest are counted


@dataclass(frozen=True)
class Student:
    """A trial, and how far it has come. `differs` is what it has otherwise than the defaults, its teacher aside."""

    trial: int
    row: int | None
    differs: dict[str, str]
    params: Point
    state: str
    reason: str
    steps: int
    metrics: dict[str, float]  # of its last probe
    key: str  # of its history there


@dataclass
class Checkpoint:
    """A checkpoint that taught; `metrics` are empty where the store has no probe of it."""

    step: int
    key: str
    description: dict[str, Any]  # its history
    metrics: dict[str, float]
    students: list[Student] = field(default_factory=list)  # best first
    pupils: list[Teacher] = field(default_factory=list)  # teachers that it taught


@dataclass
class Teacher:
    """One line of training, as far as it taught: checkpoints that passed through the same history, oldest last."""

    title: str
    checkpoints: list[Checkpoint]
    taught_by: Checkpoint | None = None

    @property
    def steps(self) -> int:
        """To which step it was trained in order to teach."""
        return self.checkpoints[0].step

    @property
    def key(self) -> str:
        """The name of its history there."""
        return self.checkpoints[0].key


@dataclass
class Lineage:
    """A study's teachers, those of most students first; trials that none taught; and how many could not be run."""

    study: str
    metric: str
    best: int | None  # the trial
    teachers: list[Teacher]
    alone: list[Student]
    unavailable: int

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All that taught."""
        return [checkpoint for teacher in self.teachers for checkpoint in teacher.checkpoints]

    @property
    def students(self) -> list[Student]:
        """All trials that were run, without repeats."""
        return [student for each in self.checkpoints for student in each.students] + self.alone


def trace(study: StudyState, result: Mapping[str, Any]) -> Lineage:
    """Who taught whom, by a study and its `results.summary`."""
    defaults = study.space.defaults
    groups: dict[str | None, list[Student]] = defaultdict(list)
    chains: dict[str, tuple[list[TeacherRef], ProbeSpec]] = {}
    rows = [row for row in result["trials"] if row["repeats"] is None]
    for row in rows:
        if row["state"] != "UNAVAILABLE":
            key = row["teacher_key"]
            groups[key].append(_student(row, defaults))
            if key is not None and key not in chains:
                trial = study.trials[row["trial"]]
                chains[key] = (runs.teachers(study.run(trial)), study.probe(trial))
    for students in groups.values():
        students.sort(key=lambda student: rank(student, study.metric))
    found: dict[str, Checkpoint] = {}
    taught: dict[str, str] = {}  # a teacher's checkpoint -> that of the teacher's teacher
    for refs, spec in chains.values():
        chain = [_checkpoint(study, ref, spec, found) for ref in refs]
        taught |= {younger.key: older.key for younger, older in pairwise(chain)}
    for key, checkpoint in found.items():
        checkpoint.students = groups.get(key, [])
    teachers = list(_lines(found.values()))
    for teacher in teachers:
        if teacher.key in taught:
            teacher.taught_by = found[taught[teacher.key]]
            teacher.taught_by.pupils.append(teacher)
    teachers.sort(key=lambda each: (-sum(_descendants(one) for one in each.checkpoints), each.title, -each.steps))
    unavailable = sum(row["state"] == "UNAVAILABLE" for row in rows)
    best = result["best"]["trial"] if result["best"] else None
    return Lineage(study.space.id, study.metric, best, teachers, groups.get(None, []), unavailable)


def _student(row: Row, defaults: Point) -> Student:
    differs = {
        name: value
        for name, value in summary.differing(row["params"], defaults).items()
        if not name.startswith(OF_THE_TEACHER)
    }
    same = {name: row[name] for name in ("trial", "row", "params", "state", "reason", "steps", "metrics")}
    return Student(differs=differs, key=row["history_key"], **same)


def rank(student: Student, metric: str) -> tuple[bool, int, float, int]:
    """What students are ordered by: the complete ones by their metric; then the others, further first, better first."""
    complete = student.state == "COMPLETE"
    return (not complete, 0 if complete else -student.steps, student.metrics.get(metric, math.inf), student.trial)


def _checkpoint(study: StudyState, ref: TeacherRef, spec: ProbeSpec, found: dict[str, Checkpoint]) -> Checkpoint:
    description = history.describe(ref.run, ref.step)
    key = history.key_of(description)
    if key not in found:
        record = study.store.noted("probes", probe_key(ref.run, ref.step, spec)) or {}
        found[key] = Checkpoint(ref.step, key, description, record.get("metrics", {}))
    return found[key]


def _lines(checkpoints: Iterable[Checkpoint]) -> Iterator[Teacher]:
    """Checkpoints of one line of training together. One that several lines pass stands on the longest."""
    begun: dict[str, list[Checkpoint]] = defaultdict(list)
    for checkpoint in sorted(checkpoints, key=lambda each: -each.step):
        begun[_at(checkpoint, 1)].append(checkpoint)
    lines: dict[str, list[list[Checkpoint]]] = defaultdict(list)
    for family in begun.values():
        steps = {checkpoint.step for checkpoint in family}
        passed: dict[str, list[Checkpoint]] = {}  # history -> the line that goes through it
        for checkpoint in family:
            if checkpoint.key not in passed:
                line: list[Checkpoint] = []
                lines[provenance.title(checkpoint.description)].append(line)
                for step in steps:
                    if step <= checkpoint.step:
                        passed.setdefault(_at(checkpoint, step), line)
            passed[checkpoint.key].append(checkpoint)
    for title, alike in lines.items():
        for line, told in zip(alike, _differences([line[0].description for line in alike]), strict=True):
            yield Teacher(", ".join([title, *told]), line)


def _at(checkpoint: Checkpoint, step: int) -> str:
    return history.key_of(history.cut(checkpoint.description, step))


def _differences(alike: list[dict[str, Any]]) -> list[list[str]]:
    """What tells histories of one title apart, in words: a seed, a rate, a block."""
    leaves = [_values(description) for description in alike]
    names = sorted({name for each in leaves for name in each})
    varied = [name for name in names if len({str(each.get(name)) for each in leaves}) > 1]
    return [[f"{name} {each[name]}" for name in varied if name in each] for each in leaves]


def _values(description: dict[str, Any]) -> dict[str, Any]:
    """The values of a history by name, without its length and its teacher, which are shown separately."""
    values = flatten({key: value for key, value in description.items() if key not in ("phases", "step")})
    for phase in description["phases"]:
        values |= flatten(phase["term"])
    for phase in description["phases"][:-1]:
        values["until"] = phase["until"]
    return values


def _descendants(checkpoint: Checkpoint) -> int:
    below = sum(_descendants(one) for pupil in checkpoint.pupils for one in pupil.checkpoints)
    return len(checkpoint.students) + below


# --- the table


def rows(found: Lineage) -> list[dict[str, Any]]:
    """A row for each checkpoint that taught, as plain data; the last is of the trials that none taught."""
    told = [
        {
            "teacher": teacher.title,
            "taught_by": teacher.taught_by.key if teacher.taught_by else None,
            "step": checkpoint.step,
            "key": checkpoint.key,
            "metrics": checkpoint.metrics,
            "taught": taught(checkpoint.pupils),
            **_class(checkpoint.students),
        }
        for teacher in found.teachers
        for checkpoint in teacher.checkpoints
    ]
    nobody: dict[str, Any] = {
        "teacher": None,
        "taught_by": None,
        "step": None,
        "key": None,
        "metrics": {},
        "taught": "",
    }
    return told + ([nobody | _class(found.alone)] if found.alone else [])


def _class(students: list[Student]) -> dict[str, Any]:
    best = students[0] if students else None
    return {
        "students": len(students),
        "best": best.trial if best else None,
        "best_steps": best.steps if best else 0,
        "best_metrics": best.metrics if best else {},
        "trials": sorted(student.trial for student in students),
    }


def markdown(found: Lineage) -> str:
    """The table as Markdown."""
    metric = found.metric
    head = ["teacher", "step", "key", metric, "students", "best", f"its {metric}", "at step", "trials"]
    return tables.piped(head, ([*_teacher(row, metric), *_students(row, metric)] for row in rows(found)))


def _teacher(row: dict[str, Any], metric: str) -> list[str]:
    if row["key"] is None:
        return ["none", "", "", ""]
    told = row["teacher"] + (f", taught by {row['taught_by'][:12]}" if row["taught_by"] else "")
    return [told, str(row["step"]), row["key"][:12], tables.with_error(row["metrics"], metric)]


def _students(row: dict[str, Any], metric: str) -> list[str]:
    told = "; ".join(filter(None, (numbers(row["trials"]), row["taught"])))
    best = [str(row["best"]), tables.with_error(row["best_metrics"], metric), str(row["best_steps"])]
    return [str(row["students"]), *(best if row["students"] else ["", "", ""]), told]


def taught(pupils: list[Teacher]) -> str:
    """The teachers that one taught."""
    return f"{len(pupils)} teachers" if len(pupils) > 1 else "".join(f"the teacher {pupil.title}" for pupil in pupils)


def numbers(trials: list[int]) -> str:
    """Rising numbers as people write them: 0–8, 14, 16; many are counted from the thirteenth range on."""
    ranges: list[list[int]] = []
    for trial in trials:
        if ranges and trial == ranges[-1][1] + 1:
            ranges[-1][1] = trial
        else:
            ranges.append([trial, trial])
    told = [str(low) if low == high else f"{low}–{high}" for low, high in ranges[:RANGES]]
    more = sum(high - low + 1 for low, high in ranges[RANGES:])
    return ", ".join(told) + (f" and {more} more" if more else "")
