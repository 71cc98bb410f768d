"""The lineage of a study as a picture: teachers as lines of training on the left, their students on the right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from raysweep.formats import short
from raysweep.report import tables
from raysweep.report.lineage import Checkpoint, Lineage, Student, Teacher, pupils_text
from raysweep.report.plots.style import BEST, COLOURS
from raysweep.study.summary import STATE_WORDS, value_text
from raysweep.svg import INK, LINE, finish, fitting, group, path, sheet, write

STUDENTS, CHECKPOINTS = 12, 24  # the most students of a checkpoint, and the most checkpoints, that are drawn
WIDTH, MARGIN, ROW, GAP = 1000, 20, 20, 14  # pixels
LEFT, RIGHT = MARGIN + 4, 236  # where a teacher's line begins, and where the longest line ends
LABEL, GATE, MARK = 254, 402, 440  # x of the labels of edges, of the point where edges part, and of students' marks
# x of the columns' right edges; for DIFFERS of its left edge
NUMBER, DIFFERS, METRIC, STEP = 494, 502, 928, WIDTH - MARGIN
VALUE = 130  # width of the widest metric with its error
GREY, PALE = "#5b6671", "#e4e8ec"
STAR = [(r * math.sin(turn * math.pi / 5), -r * math.cos(turn * math.pi / 5)) for turn, r in enumerate([7.5, 3] * 5)]
SHORTER = {"guidance_scale": "ω ", "layers": ""}  # the paper's names for parameters


@dataclass
class _Group:
    """The students and pupils of one checkpoint, or the students without a teacher; and their place on the sheet."""

    checkpoint: Checkpoint | None
    students: list[Student]
    pupils: list[Teacher] = field(default_factory=list)
    top: float = 0.0

    @property
    def rows(self) -> int:
        return bool(self.pupils) + len(self.shown) + (len(self.students) > len(self.shown))

    @property
    def shown(self) -> list[Student]:
        """The students that are drawn, at most `STUDENTS`. One more is drawn too, because a line that only counts it
        would take as much room."""
        return self.students if len(self.students) == STUDENTS + 1 else self.students[:STUDENTS]

    @property
    def height(self) -> float:
        return ROW * max(2, self.rows)

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    def y(self, row: int) -> float:
        """The middle of a row. A single row stands in the middle of the group."""
        return self.middle + ROW * (row - (self.rows - 1) / 2)


@dataclass
class _Block:
    """A teacher's line, at `y`, with the groups below it; or the group of students without a teacher."""

    teacher: Teacher | None
    y: float
    groups: list[_Group]


def drawing(lineage: Lineage) -> str:
    """The picture as SVG. The checkpoints that taught most are drawn, each with about a dozen students; the rest is
    only counted."""
    blocks, bottom = _placed(lineage)
    remarks = _remarks(lineage, blocks)
    picture = sheet(WIDTH, bottom + ROW * len(remarks) + MARGIN)
    _head(picture, lineage)
    longest = max((block.teacher.steps for block in blocks if block.teacher), default=0)
    for block in blocks:
        if block.teacher:
            _draw_teacher(picture, block, block.teacher, longest, lineage.metric)
        for members in block.groups:
            _draw_group(picture, members, lineage)
    for number, remark in enumerate(remarks):
        write(picture, MARGIN, bottom + ROW * number + 14, remark, size=11, colour=GREY)
    return finish(picture)


# --- where everything is


def _placed(lineage: Lineage) -> tuple[list[_Block], float]:
    """The blocks from top to bottom, and where the last one ends."""
    drawn = {id(checkpoint) for checkpoint in _drawn(lineage)}
    y, blocks = MARGIN + 100.0, []
    for teacher in lineage.teachers:
        checkpoints = [checkpoint for checkpoint in teacher.checkpoints if id(checkpoint) in drawn]
        if checkpoints:
            groups = [_Group(checkpoint, checkpoint.students, checkpoint.pupils) for checkpoint in checkpoints]
            blocks.append(_Block(teacher, y + 38, groups))
            y = _stack(groups, y + 50)
    if lineage.alone:
        blocks.append(_Block(None, y, [_Group(None, lineage.alone)]))
        y = _stack(blocks[-1].groups, y)
    return blocks, y


def _drawn(lineage: Lineage) -> list[Checkpoint]:
    """The checkpoints to draw, in order: the one that taught the best trial, those that taught the most trials and
    teachers, those with better students."""

    def place(checkpoint: Checkpoint) -> tuple[bool, int, list[tuple[bool, int, float, int]]]:
        first = checkpoint.students[:1]
        is_best = any(student.trial.number == lineage.best for student in first)
        taught = len(checkpoint.students) + len(checkpoint.pupils)
        return (not is_best, -taught, [student.rank for student in first])

    return sorted(lineage.checkpoints, key=place)[:CHECKPOINTS]


def _stack(groups: Iterable[_Group], y: float) -> float:
    """Place groups below each other from `y` on; returns where the next one may begin."""
    for members in groups:
        members.top = y
        y += members.height + GAP
    return y


def _remarks(lineage: Lineage, blocks: list[_Block]) -> list[str]:
    """What the picture leaves out."""
    shown = {id(members.checkpoint) for block in blocks for members in block.groups}
    left_out = [checkpoint for checkpoint in lineage.checkpoints if id(checkpoint) not in shown]
    remarks = []
    if left_out:
        students = sum(len(checkpoint.students) for checkpoint in left_out)
        remarks.append(f"… and {_count(len(left_out), 'more checkpoint')} that taught {_count(students, 'trial')}")
    if lineage.unavailable:
        remarks.append(f"{_count(lineage.unavailable, 'row')} could not be run here")
    return remarks


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


# --- what is drawn


def _head(picture: ET.Element, lineage: Lineage) -> None:
    """Title, legend, and the heads of the columns."""
    students = len(lineage.students) - len(lineage.alone)
    counts = f"{_count(students, 'trial')} taught by {_count(len(lineage.checkpoints), 'checkpoint')}"
    counts += f" of {_count(len(lineage.teachers), 'teacher')}"
    counts += f", {len(lineage.alone):,} without a teacher" if lineage.alone else ""
    title = fitting(f"{lineage.study}: who taught whom", WIDTH - 2 * MARGIN, 18)
    write(picture, MARGIN, MARGIN + 6, title, size=15, weight="bold")
    write(picture, MARGIN, MARGIN + 27, counts, colour=GREY)
    x = float(MARGIN)
    for word, colour, shape in _legend(lineage):
        _mark(picture, x + 6, MARGIN + 46, colour, shape)
        write(picture, x + 17, MARGIN + 50, word)
        x += 17 + 7.2 * len(word) + 22
    y = MARGIN + 84
    heads = [(DIFFERS, "differs from the defaults", "start"), (METRIC, lineage.metric, "end")]
    heads += [(NUMBER, "trial", "end"), (STEP, "at step", "end")]
    if lineage.teachers:
        heads += [(MARGIN, "teachers, from step 0 on", "start"), (LABEL, "taught at, with its metric", "start")]
    for place, head, anchor in heads:
        write(picture, place, y, head, size=11, colour=GREY, anchor=anchor)
    path(picture, f"M{MARGIN} {y + 7} H{STEP}", PALE)


def _legend(lineage: Lineage) -> Iterator[tuple[str, str, str]]:
    """The entries of the legend: text, colour and shape."""
    if lineage.best is not None:
        yield f"best: trial {lineage.best}", BEST, "BEST"
    for state, colour in COLOURS.items():
        if count := sum(student.trial.state == state for student in lineage.students):
            yield f"{count:,} {STATE_WORDS[state]}", colour, state


def _draw_teacher(picture: ET.Element, block: _Block, teacher: Teacher, longest: int, metric: str) -> None:
    """A line from step 0 on, with a node at each step where it taught and an edge down from there."""
    y, title = block.y, teacher.title
    if teacher.taught_by:
        title += f", taught at {short(teacher.taught_by.step)} by {_kinds(teacher.taught_by)}"
    write(group(picture, title), MARGIN, y - 26, fitting(title, WIDTH - 2 * MARGIN, 14), weight="bold")
    nodes = [
        (LEFT + (RIGHT - LEFT) * members.checkpoint.step / longest, members.checkpoint, members)
        for members in block.groups
        if members.checkpoint
    ]
    for x, _, members in nodes:
        radius = min(22.0, members.middle - y)
        bend = f"V{members.middle - radius:.1f} q0 {radius:.1f} {radius:.1f} {radius:.1f} H{GATE}"
        path(picture, f"M{x:.1f} {y:.1f} {bend}", LINE, 1.5 + 1.2 * math.log10(max(1, len(members.students))))
    end = LEFT + (RIGHT - LEFT) * teacher.steps / longest
    path(picture, f"M{LEFT} {y - 6:.1f} v12 v-6 H{end:.1f}", INK, 3)
    free = float(WIDTH)  # no step is written to the left of this x yet
    for x, checkpoint, _ in nodes:  # from the latest to the earliest
        node = group(picture, _tooltip(checkpoint, metric))
        _circle(node, x, y, 5.5, INK, 2.5, "white")
        half = 3.6 * len(short(checkpoint.step))
        if x + half < free:
            write(node, x, y - 10, short(checkpoint.step), size=11, anchor="middle")
            free = x - half - 4


def _draw_group(picture: ET.Element, members: _Group, lineage: Lineage) -> None:
    """The label of the edge to a group, and a row for each of its members."""
    if members.checkpoint:
        value = tables.with_error(members.checkpoint.metrics, lineage.metric)
        label, step = group(picture, _tooltip(members.checkpoint, lineage.metric)), short(members.checkpoint.step)
        write(label, LABEL, members.middle - 6, step, size=11, weight="bold")
        write(label, LABEL + 8 + 8 * len(step), members.middle - 6, value, size=11)
    else:
        write(picture, LABEL, members.middle - 6, "without a teacher", size=11, weight="bold")
        path(picture, f"M{LABEL} {members.middle:.1f} H{GATE}", LINE, 1.5)
    counts = [(len(members.students), "student"), (len(members.pupils), "teacher")]
    text = ", ".join(_count(number, what) for number, what in counts if number)
    write(picture, LABEL, members.middle + 15, text, size=11, colour=GREY)
    if members.pupils:
        _edge(picture, members, 0, INK)
        _mark(picture, MARK, members.y(0), INK, "TEACHER")
        text = "taught " + pupils_text(members.pupils)
        write(picture, MARK + 13, members.y(0) + 4, fitting(text, STEP - MARK - 13))
    row = int(bool(members.pupils))
    for student in members.shown:
        best = student.trial.number == lineage.best
        _edge(picture, members, row, BEST if best else COLOURS[student.trial.state])
        _draw_student(picture, members.y(row), student, lineage.metric, best)
        row += 1
    if rest := members.students[len(members.shown) :]:
        _edge(picture, members, row, LINE, dashed=True)
        first = rest[0].trial
        value = tables.with_error(first.metrics, lineage.metric)
        text = f"… and {len(rest):,} more" + (f", the best of them {value} at {short(first.step)}" if value else "")
        write(picture, MARK + 13, members.y(row) + 4, text, colour=GREY)


def _draw_student(picture: ET.Element, y: float, student: Student, metric: str, best: bool) -> None:
    trial = student.trial
    row = "" if trial.row is None else f", row {trial.row}"
    facts = [f"trial {trial.number}{row}: {STATE_WORDS[trial.state]}", trial.reason, f"key {trial.history_key}"]
    facts += [f"{path} {value_text(value)}" for path, value in trial.params.items()]
    line, weight = group(picture, "\n".join(filter(None, facts))), "bold" if best else "normal"
    _mark(line, MARK, y, BEST if best else COLOURS[trial.state], "BEST" if best else trial.state)
    differs = ", ".join(f"{SHORTER.get(name, f'{name} ')}{_brief(value)}" for name, value in student.differs.items())
    differs = fitting(differs or "the defaults", METRIC - VALUE - DIFFERS, 13 if best else 12)
    value = tables.with_error(trial.metrics, metric) or STATE_WORDS[trial.state]
    write(line, NUMBER, y + 4, str(trial.number), weight="bold", anchor="end")
    write(line, DIFFERS, y + 4, differs, weight=weight)
    write(line, METRIC, y + 4, value, weight=weight, anchor="end")
    write(line, STEP, y + 4, short(trial.step) if trial.step else "", anchor="end", colour=GREY)


def _brief(value: str) -> str:
    """A parameter's value: whole thousands as 400K, other numbers with three digits."""
    if value.isdecimal():
        return value if int(value) % 1000 else short(int(value))
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


def _kinds(checkpoint: Checkpoint) -> str:
    return " then ".join(phase["term"]["kind"] for phase in checkpoint.description["phases"])


def _tooltip(checkpoint: Checkpoint, metric: str) -> str:
    value = tables.with_error(checkpoint.metrics, metric) or "not probed"
    return f"step {checkpoint.step}\nkey {checkpoint.key}\n{metric}: {value}"


def _edge(picture: ET.Element, members: _Group, row: int, colour: str, dashed: bool = False) -> None:
    """A curve from the point where a group's edges part to one of its rows."""
    y, half = members.y(row), (MARK - 8 - GATE) / 2
    curve = (
        f"M{GATE} {members.middle:.1f} c{half} 0 {half} {y - members.middle:.1f} {2 * half} {y - members.middle:.1f}"
    )
    edge = path(picture, curve, colour, 1.3)
    if dashed:
        edge.set("stroke-dasharray", "3 3")


def _mark(picture: ET.Element, x: float, y: float, colour: str, shape: str) -> None:
    """A shape for each state, so that states differ in more than their colour."""
    if shape in ("COMPLETE", "RUNNING"):
        _circle(picture, x, y, 4.5, colour, 2, colour if shape == "COMPLETE" else "white")
        return
    if shape == "FAILED":
        path(picture, f"M{x - 4.5:.1f} {y - 4.5:.1f} l9 9 m0 -9 l-9 9", colour, 2.5)
        return
    corners = {"PRUNED": ((-6, -4), (6, -4), (0, 6)), "TEACHER": ((-6, 0), (0, -6), (6, 0), (0, 6)), "BEST": STAR}
    points = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners[shape])
    ET.SubElement(picture, "polygon", points=points, fill=colour)


def _circle(picture: ET.Element, x: float, y: float, radius: float, colour: str, width: float, fill: str) -> None:
    facts = {"stroke": colour, "stroke-width": f"{width:.1f}", "fill": fill}
    ET.SubElement(picture, "circle", facts, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius}")
