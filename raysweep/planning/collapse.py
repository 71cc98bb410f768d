"""A tree of stages made small enough to look at: what is alike stands once, with a count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.planning.segments import Segment


@dataclass
class Fold:
    """`count` stretches of training that are alike, with the checkpoints on their way and what follows each."""

    kind: str
    begin: int
    ends: list[int]  # where it publishes; the last is where it ends
    count: int
    users: int  # trials that train through it as their own, all together
    teaches: list[int] = field(default_factory=list)  # at which of its ends it is a teacher
    taught_by: tuple[str, int] | None = None  # kind and age of its teacher
    teachers: list[Fold] = field(default_factory=list)
    children: list[Fold] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the stages that it stands for

    @property
    def end(self) -> int:
        return self.ends[-1]


def fold(segments: Sequence[Segment]) -> list[Fold]:
    """The roots of the folded tree, teachers first, then what more trials need."""
    below: dict[int | None, list[Segment]] = defaultdict(list)
    for segment in segments:
        below[segment.parent].append(segment)
    names: dict[Any, int] = {}  # of shapes
    shapes: list[int] = [0] * len(segments)
    for segment in reversed(segments):  # children before their parents
        inner = tuple(sorted(shapes[child.number] for child in below[segment.number]))
        shape = (segment.begin, segment.end, segment.kind, _taught(segment, segments), segment.pupils > 0, inner)
        shapes[segment.number] = names.setdefault(shape, len(names))
    places: dict[int, Fold] = {}
    roots = _siblings(below[None], segments, below, shapes, places)
    for number, place in places.items():
        teacher = segments[number].teacher
        if teacher is not None and places[teacher] not in place.teachers:
            place.teachers.append(places[teacher])
    return roots


def _siblings(
    alike: Sequence[Segment],
    segments: Sequence[Segment],
    below: dict[int | None, list[Segment]],
    shapes: Sequence[int],
    places: dict[int, Fold],
) -> list[Fold]:
    groups: dict[int, list[Segment]] = defaultdict(list)
    for segment in alike:
        groups[shapes[segment.number]].append(segment)
    folds = []
    for group in groups.values():
        first = group[0]
        made = Fold(first.kind, first.begin, [first.end], len(group), sum(segment.users for segment in group))
        made.teaches = [first.end] if first.pupils else []
        made.taught_by = _taught(first, segments)
        made.children = _siblings(
            [child for segment in group for child in below[segment.number]], segments, below, shapes, places
        )
        # What goes on as before comes first.
        made.children = [
            *(c for c in made.children if c.kind == made.kind),
            *(c for c in made.children if c.kind != made.kind),
        ]
        made.numbers = [segment.number for segment in group]
        if len(made.children) == 1 and _goes_on(made, made.children[0]):
            (last,) = made.children
            made.ends += last.ends
            made.teaches += last.teaches
            made.children = last.children
            made.numbers += last.numbers
        places.update(dict.fromkeys(made.numbers, made))
        folds.append(made)
    return sorted(folds, key=lambda each: (not each.teaches, -each.users, each.kind, each.end))


def _goes_on(earlier: Fold, later: Fold) -> bool:
    """Whether the second is but the rest of the first."""
    return (later.kind, later.count, later.taught_by) == (earlier.kind, earlier.count, earlier.taught_by)


def _taught(segment: Segment, segments: Sequence[Segment]) -> tuple[str, int] | None:
    if segment.teacher is None:
        return None
    teacher = segments[segment.teacher]
    return (teacher.kind, teacher.end)
