"""A tree of segments made small enough to look at: equal subtrees are merged into one group with a count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.planning.segments import Segment


@dataclass
class SegmentGroup:
    """`count` equal chains of segments, with the checkpoints they commit and the groups that continue them."""

    kind: str
    begin: int
    ends: list[int]  # steps at which a checkpoint is committed; the last one ends the group
    count: int
    users: int  # trials whose own runs contain these segments, summed over the group
    teaches: list[int] = field(default_factory=list)  # those of `ends` whose checkpoint is a teacher
    taught_by: tuple[str, int] | None = None  # kind and step of its teacher
    teachers: list[SegmentGroup] = field(default_factory=list)
    children: list[SegmentGroup] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the segments that were merged

    @property
    def end(self) -> int:
        return self.ends[-1]


def collapse(segments: Sequence[Segment]) -> list[SegmentGroup]:
    """The roots of the collapsed tree: teachers first, then by how many trials use them."""
    below: dict[int | None, list[Segment]] = defaultdict(list)
    for segment in segments:
        below[segment.parent].append(segment)
    numbers: dict[Any, int] = {}  # of distinct subtrees
    subtrees: list[int] = [0] * len(segments)
    for segment in reversed(segments):  # children before their parents
        inner = tuple(sorted(subtrees[child.number] for child in below[segment.number]))
        subtree = (segment.begin, segment.end, segment.kind, _teacher(segment, segments), segment.pupils > 0, inner)
        subtrees[segment.number] = numbers.setdefault(subtree, len(numbers))
    groups: dict[int, SegmentGroup] = {}
    roots = _merge(below[None], segments, below, subtrees, groups)
    for number, group in groups.items():
        teacher = segments[number].teacher
        if teacher is not None and groups[teacher] not in group.teachers:
            group.teachers.append(groups[teacher])
    return roots


def _merge(
    siblings: Sequence[Segment],
    segments: Sequence[Segment],
    below: dict[int | None, list[Segment]],
    subtrees: Sequence[int],
    groups: dict[int, SegmentGroup],
) -> list[SegmentGroup]:
    """Group siblings by their subtrees, and enter each segment's group in `groups`."""
    equal: dict[int, list[Segment]] = defaultdict(list)
    for segment in siblings:
        equal[subtrees[segment.number]].append(segment)
    merged = []
    for members in equal.values():
        first = members[0]
        group = SegmentGroup(first.kind, first.begin, [first.end], len(members), sum(s.users for s in members))
        group.teaches = [first.end] if first.pupils else []
        group.taught_by = _teacher(first, segments)
        children = [child for segment in members for child in below[segment.number]]
        group.children = _merge(children, segments, below, subtrees, groups)
        # Groups that continue with the same method come first.
        group.children.sort(key=lambda child: child.kind != group.kind)
        group.numbers = [segment.number for segment in members]
        if len(group.children) == 1 and _continues(group, group.children[0]):
            (last,) = group.children
            group.ends += last.ends
            group.teaches += last.teaches
            group.children = last.children
            group.numbers += last.numbers
        groups.update(dict.fromkeys(group.numbers, group))
        merged.append(group)
    return sorted(merged, key=lambda group: (not group.teaches, -group.users, group.kind, group.end))


def _continues(earlier: SegmentGroup, later: SegmentGroup) -> bool:
    """Whether the second group only continues the first, so that both can be drawn as one."""
    return (later.kind, later.count, later.taught_by) == (earlier.kind, earlier.count, earlier.taught_by)


def _teacher(segment: Segment, segments: Sequence[Segment]) -> tuple[str, int] | None:
    """Kind and step of a segment's teacher."""
    if segment.teacher is None:
        return None
    teacher = segments[segment.teacher]
    return (teacher.kind, teacher.end)
