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
from raysweep.svg import finish, fitting, sheet, write

STUDENTS, CHECKPOINTS = 12, 24  # to draw: of each checkpoint, and in all
WIDTH, MARGIN, ROW, GAP = 1000, 20, 20, 14  # pixels
LEFT, RIGHT = MARGIN + 4, 236  # where a teacher's line begins and the longest ends
LABEL, GATE, MARK = 254, 402, 440  # where edges are labelled, where they part, and where students stand
NUMBER, TOLD, METRIC, STEP = 494, 502, 928, WIDTH - MARGIN  # columns of their text; all but TOLD end there
VALUE = 130  # how wide a metric with its error may be
DARK, GREY, EDGE, PALE = "#1c2733", "#5b6671", "#8d99a6", "#e4e8ec"
STAR = [(r * math.sin(turn * math.pi / 5), -r * math.cos(turn * math.pi / 5)) for turn, r in enumerate([7.5, 3] * 5)]
SHORTER = {"guidance_scale": "ω ", "layers": ""}  # what the paper calls them


@dataclass
class _Group:
    """Those that one checkpoint taught, or that none did, and where they stand."""

    by: list[Checkpoint]  # one or none
    students: list[Student]
    pupils: list[Teacher] = field(default_factory=list)
    top: float = 0.0

    @property
    def rows(self) -> int:
        return bool(self.pupils) + len(self.shown) + (len(self.students) > len(self.shown))

    @property
    def shown(self) -> list[Student]:
        """Those that are drawn; a last one takes no more room than to say that there is one more."""
        return self.students if len(self.students) == STUDENTS + 1 else self.students[:STUDENTS]

    @property
    def height(self) -> float:
        return ROW * max(2, self.rows)

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    def y(self, row: int) -> float:
        """The middle of a row; few rows stand in the middle."""
        return self.middle + ROW * (row - (self.rows - 1) / 2)


@dataclass
class _Block:
    """A teacher's line, at `y`, with the groups below it; or the trials without one."""

    teacher: Teacher | None
    y: float
    groups: list[_Group]


def drawing(found: Lineage) -> str:
    """The picture. Of a checkpoint's students the first dozen are drawn, of many checkpoints those of most students."""
    blocks, bottom = _placed(found)
    remarks = _remarks(found, blocks)
    picture = sheet(WIDTH, bottom + ROW * len(remarks) + MARGIN)
    _head(picture, found)
    longest = max((block.teacher.steps for block in blocks if block.teacher), default=0)
    for block in blocks:
        if block.teacher:
            _draw_teacher(picture, block, block.teacher, longest, found.metric)
        for group in block.groups:
            _draw_group(picture, group, found)
    for number, remark in enumerate(remarks):
        write(picture, MARGIN, bottom + ROW * number + 14, remark, size=11, colour=GREY)
    return finish(picture)


# --- where everything is


def _placed(found: Lineage) -> tuple[list[_Block], float]:
    """The blocks from top to bottom, and where the last one ends."""
    drawn = {id(checkpoint) for checkpoint in _drawn(found)}
    y, blocks = MARGIN + 100.0, []
    for teacher in found.teachers:
        groups = [_Group([each], each.students, each.pupils) for each in teacher.checkpoints if id(each) in drawn]
        if groups:
            blocks.append(_Block(teacher, y + 38, groups))
            y = _stack(groups, y + 50)
    if found.alone:
        blocks.append(_Block(None, y, [_Group([], found.alone)]))
        y = _stack(blocks[-1].groups, y)
    return blocks, y


def _drawn(found: Lineage) -> list[Checkpoint]:
    """The checkpoints to draw: that of the best trial, then those of most students, then those of better ones."""

    def place(checkpoint: Checkpoint) -> tuple[bool, int, list[tuple[bool, int, float, int]]]:
        first = checkpoint.students[:1]
        is_best = any(student.trial.number == found.best for student in first)
        taught = len(checkpoint.students) + len(checkpoint.pupils)
        return (not is_best, -taught, [student.rank for student in first])

    return sorted(found.checkpoints, key=place)[:CHECKPOINTS]


def _stack(groups: Iterable[_Group], y: float) -> float:
    for group in groups:
        group.top = y
        y += group.height + GAP
    return y


def _remarks(found: Lineage, blocks: list[_Block]) -> list[str]:
    """What the picture does not show."""
    shown = {id(checkpoint) for block in blocks for group in block.groups for checkpoint in group.by}
    left = [checkpoint for checkpoint in found.checkpoints if id(checkpoint) not in shown]
    remarks = []
    if left:
        students = sum(len(checkpoint.students) for checkpoint in left)
        remarks.append(f"… and {_count(len(left), 'more checkpoint')} that taught {_count(students, 'trial')}")
    if found.unavailable:
        remarks.append(f"{_count(found.unavailable, 'row')} could not be run here")
    return remarks


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


# --- what is drawn


def _head(picture: ET.Element, found: Lineage) -> None:
    """Title, legend, and the heads of the columns."""
    students = len(found.students) - len(found.alone)
    told = f"{_count(students, 'trial')} taught by {_count(len(found.checkpoints), 'checkpoint')}"
    told += f" of {_count(len(found.teachers), 'teacher')}" + (f", {len(found.alone):,} by none" if found.alone else "")
    title = fitting(f"{found.study}: who taught whom", WIDTH - 2 * MARGIN, 18)
    write(picture, MARGIN, MARGIN + 6, title, size=15, weight="bold")
    write(picture, MARGIN, MARGIN + 27, told, colour=GREY)
    x = float(MARGIN)
    for word, colour, shape in _legend(found):
        _mark(picture, x + 6, MARGIN + 46, colour, shape)
        write(picture, x + 17, MARGIN + 50, word)
        x += 17 + 7.2 * len(word) + 22
    y = MARGIN + 84
    heads = [(TOLD, "other than the defaults", "start"), (METRIC, found.metric, "end")]
    heads += [(NUMBER, "trial", "end"), (STEP, "at step", "end")]
    if found.teachers:
        heads += [(MARGIN, "teachers, from step 0 on", "start"), (LABEL, "taught at, with its metric", "start")]
    for place, head, anchor in heads:
        write(picture, place, y, head, size=11, colour=GREY, anchor=anchor)
    _stroke(picture, f"M{MARGIN} {y + 7} H{STEP}", PALE, 1)


def _legend(found: Lineage) -> Iterator[tuple[str, str, str]]:
    if found.best is not None:
        yield f"best: trial {found.best}", BEST, "BEST"
    for state, colour in COLOURS.items():
        if count := sum(student.trial.state == state for student in found.students):
            yield f"{count:,} {STATE_WORDS[state]}", colour, state


def _draw_teacher(picture: ET.Element, block: _Block, teacher: Teacher, longest: int, metric: str) -> None:
    """A line from step 0 on, with a node where it taught and an edge down from there."""
    y, told = block.y, teacher.title
    if teacher.taught_by:
        told += f", taught at {short(teacher.taught_by.step)} by {_kinds(teacher.taught_by)}"
    write(_with_tooltip(picture, told), MARGIN, y - 26, fitting(told, WIDTH - 2 * MARGIN, 14), weight="bold")
    nodes = [(LEFT + (RIGHT - LEFT) * each.step / longest, each, group) for group in block.groups for each in group.by]
    for x, _, group in nodes:
        radius = min(22.0, group.middle - y)
        bend = f"V{group.middle - radius:.1f} q0 {radius:.1f} {radius:.1f} {radius:.1f} H{GATE}"
        _stroke(picture, f"M{x:.1f} {y:.1f} {bend}", EDGE, 1.5 + 1.2 * math.log10(max(1, len(group.students))))
    end = LEFT + (RIGHT - LEFT) * teacher.steps / longest
    _stroke(picture, f"M{LEFT} {y - 6:.1f} v12 v-6 H{end:.1f}", DARK, 3)
    free = float(WIDTH)  # to the left of it no step is written yet
    for x, checkpoint, _ in nodes:  # the oldest first
        node = _with_tooltip(picture, _facts(checkpoint, metric))
        ET.SubElement(node, "circle", _line(DARK, 2.5), cx=f"{x:.1f}", cy=f"{y:.1f}", r="5.5", fill="white")
        half = 3.6 * len(short(checkpoint.step))
        if x + half < free:
            write(node, x, y - 10, short(checkpoint.step), size=11, anchor="middle")
            free = x - half - 4


def _draw_group(picture: ET.Element, group: _Group, found: Lineage) -> None:
    """What the edge to a group says, and those that stand in it."""
    for checkpoint in group.by:
        value = tables.with_error(checkpoint.metrics, found.metric)
        label = _with_tooltip(picture, _facts(checkpoint, found.metric))
        write(label, LABEL, group.middle - 6, step := short(checkpoint.step), size=11, weight="bold")
        write(label, LABEL + 8 + 8 * len(step), group.middle - 6, value, size=11)
    if not group.by:
        write(picture, LABEL, group.middle - 6, "without a teacher", size=11, weight="bold")
        _stroke(picture, f"M{LABEL} {group.middle:.1f} H{GATE}", EDGE, 1.5)
    counts = [(len(group.students), "student"), (len(group.pupils), "teacher")]
    told = ", ".join(_count(number, what) for number, what in counts if number)
    write(picture, LABEL, group.middle + 15, told, size=11, colour=GREY)
    if group.pupils:
        _edge(picture, group, 0, DARK)
        _mark(picture, MARK, group.y(0), DARK, "TEACHER")
        told = "taught " + pupils_text(group.pupils)
        write(picture, MARK + 13, group.y(0) + 4, fitting(told, STEP - MARK - 13))
    row = int(bool(group.pupils))
    for student in group.shown:
        best = student.trial.number == found.best
        _edge(picture, group, row, BEST if best else COLOURS[student.trial.state])
        _draw_student(picture, group.y(row), student, found.metric, best)
        row += 1
    if rest := group.students[len(group.shown) :]:
        _edge(picture, group, row, EDGE, dashed=True)
        first = rest[0].trial
        value = tables.with_error(first.metrics, found.metric)
        told = f"… and {len(rest):,} more" + (f", the best of them {value} at {short(first.step)}" if value else "")
        write(picture, MARK + 13, group.y(row) + 4, told, colour=GREY)


def _draw_student(picture: ET.Element, y: float, student: Student, metric: str, best: bool) -> None:
    trial = student.trial
    row = "" if trial.row is None else f", row {trial.row}"
    facts = [f"trial {trial.number}{row}: {STATE_WORDS[trial.state]}", trial.reason, f"key {trial.history_key}"]
    facts += [f"{path} {value_text(value)}" for path, value in trial.params.items()]
    place, weight = _with_tooltip(picture, "\n".join(filter(None, facts))), "bold" if best else "normal"
    _mark(place, MARK, y, BEST if best else COLOURS[trial.state], "BEST" if best else trial.state)
    told = ", ".join(f"{SHORTER.get(name, f'{name} ')}{_brief(value)}" for name, value in student.differs.items())
    value = tables.with_error(trial.metrics, metric) or STATE_WORDS[trial.state]
    write(place, NUMBER, y + 4, str(trial.number), weight="bold", anchor="end")
    write(place, TOLD, y + 4, fitting(told or "the defaults", METRIC - VALUE - TOLD, 13 if best else 12), weight=weight)
    write(place, METRIC, y + 4, value, weight=weight, anchor="end")
    write(place, STEP, y + 4, short(trial.step) if trial.step else "", anchor="end", colour=GREY)


def _brief(value: str) -> str:
    """A parameter's value: thousands as steps are told, of other numbers three digits."""
    if value.isdecimal():
        return value if int(value) % 1000 else short(int(value))
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


def _kinds(checkpoint: Checkpoint) -> str:
    return " then ".join(phase["term"]["kind"] for phase in checkpoint.description["phases"])


def _facts(checkpoint: Checkpoint, metric: str) -> str:
    value = tables.with_error(checkpoint.metrics, metric) or "not probed"
    return f"step {checkpoint.step}\nkey {checkpoint.key}\n{metric}: {value}"


def _edge(picture: ET.Element, group: _Group, row: int, colour: str, dashed: bool = False) -> None:
    y, half = group.y(row), (MARK - 8 - GATE) / 2
    curve = f"M{GATE} {group.middle:.1f} c{half} 0 {half} {y - group.middle:.1f} {2 * half} {y - group.middle:.1f}"
    path = _stroke(picture, curve, colour, 1.3)
    if dashed:
        path.set("stroke-dasharray", "3 3")


def _mark(picture: ET.Element, x: float, y: float, colour: str, shape: str) -> None:
    """A shape for each state, so that colour is not all that tells them apart."""
    if shape in ("COMPLETE", "RUNNING"):
        inside = {"fill": colour} if shape == "COMPLETE" else {"fill": "white"}
        ET.SubElement(picture, "circle", _line(colour, 2) | inside, cx=f"{x:.1f}", cy=f"{y:.1f}", r="4.5")
        return
    if shape == "FAILED":
        _stroke(picture, f"M{x - 4.5:.1f} {y - 4.5:.1f} l9 9 m0 -9 l-9 9", colour, 2.5)
        return
    corners = {"PRUNED": ((-6, -4), (6, -4), (0, 6)), "TEACHER": ((-6, 0), (0, -6), (6, 0), (0, 6)), "BEST": STAR}
    points = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners[shape])
    ET.SubElement(picture, "polygon", points=points, fill=colour)


def _line(colour: str, width: float) -> dict[str, str]:
    return {"stroke": colour, "stroke-width": f"{width:.1f}"}


def _stroke(picture: ET.Element, d: str, colour: str, width: float) -> ET.Element:
    return ET.SubElement(picture, "path", {"d": d, "fill": "none"} | _line(colour, width))


def _with_tooltip(picture: ET.Element, told: str) -> ET.Element:
    group = ET.SubElement(picture, "g")
    ET.SubElement(group, "title").text = "".join(c if c.isprintable() or c == "\n" else " " for c in told)
    return group
