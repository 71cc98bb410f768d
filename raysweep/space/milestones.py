"""Milestones: the steps at which runs are cut into segments.

A *trunk* is a history without the step at which it ends. Two runs have equal histories at a step exactly when they lie
on one trunk there. A checkpoint that one run needs is therefore useful to every run on its trunk, and to no other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache

from trainables.config import Run

Trunk = Callable[[Run, int], Hashable]
REMEMBERED = 10_000  # trunks of runs, which take longer to compute than to look up


class Milestones:
    """Where runs are cut: at steps that hold for every run, and at the checkpoints that the known runs need.

    Two segments of known runs are then equal or have no step in common, and each lies in one phase of its run.

    Args:
        trunk: names the trunk on which a run's history at a step lies.
        steps: every run is cut there.
    """

    def __init__(self, trunk: Trunk, steps: Iterable[int] = ()):
        self._steps: list[int] = []  # ascending
        self._trunk = lru_cache(REMEMBERED)(trunk)
        self._needed: dict[Hashable, list[int]] = {}  # by trunk: the steps at which a run needs a checkpoint
        self.extend(steps)

    def extend(self, steps: Iterable[int]) -> None:
        """Have every run cut at these steps too."""
        self._steps = sorted({*self._steps, *steps})

    def add(self, run: Run, steps: Iterable[int] = (), end: int | None = None) -> None:
        """Make a run known, which is trained to step `end` (default: its end). All runs on its trunks are cut at
        `steps`, at the ends of its phases, and where its teachers end."""
        end, steps = run.steps if end is None else end, set(steps)
        for trunk, begin, until in self._stretches(run, end):
            needed = self._needed.setdefault(trunk, [])
            for step in {until, *(step for step in steps if begin < step < until)}.difference(needed):
                insort(needed, step)
            if teacher := run.phase_after(begin).teacher:
                self.add(teacher.run, end=teacher.step)

    def between(self, run: Run, begin: int, end: int) -> list[int]:
        """The steps after `begin` and before `end` at which `run` is cut, ascending."""
        cuts = set(self._steps[bisect_right(self._steps, begin) : bisect_left(self._steps, end)])
        for trunk, first, until in self._stretches(run, end):
            needed = self._needed.get(trunk, [])
            inside = needed[bisect_right(needed, max(begin, first)) : bisect_right(needed, until)]
            cuts.update(step for step in inside if step < end)
        return sorted(cuts)

    def _stretches(self, run: Run, end: int) -> Iterator[tuple[Hashable, int, int]]:
        """The phases of `run` before step `end`, each as its trunk and the steps at which it begins and ends."""
        begin = 0
        for phase in run.phases:
            if begin >= end:
                return
            yield self._trunk(run, begin + 1), begin, min(phase.until, end)
            begin = phase.until
