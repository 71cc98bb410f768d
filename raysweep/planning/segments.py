"""The tree of segments behind runs, derived from the structure of their histories alone.

A *segment* is the part of a history between two consecutive milestones of its run. Two runs share a segment when their
histories at its end are equal. No key is computed here and no file is read, so a plan works for data that is not on
this machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raysweep.planning import price
from raysweep.space.milestones import Milestones
from trainables.config import Phase, Recipe, Run

_RECIPE = tuple(Recipe.model_fields)


@dataclass
class Segment:
    """Steps `begin` to `end` of a run, in all runs that share this part of their history."""

    number: int
    begin: int
    end: int
    run: Run
    kind: str  # of the method's term that acts in it
    parent: int | None  # the number of the segment that it continues; smaller than its own
    teacher: int | None  # the number of the segment that ends in its teacher; smaller than its own
    users: int = 0  # trials whose own run contains it
    pupils: int = 0  # trials whose teacher is the checkpoint at its end

    @property
    def steps(self) -> int:
        """Optimizer steps in it."""
        return self.end - self.begin

    @property
    def gpu_s(self) -> float:
        """Estimated GPU-seconds to train it once."""
        return self.steps * price.step_gpu_s(self.run, self.kind)


class Tree:
    """Segments by the structure of the history at their end.

    Args:
        steps: every run is cut there.
        runs: every run that is added later, with the steps of its own at which it is cut.
    """

    def __init__(self, steps: Iterable[int], runs: Iterable[tuple[Run, Iterable[int]]] = ()):
        self.segments: list[Segment] = []
        self._by_identity: dict[Any, int] = {}
        self._chains: dict[tuple[Any, int], list[int]] = {}
        self._structures: dict[int, tuple[Run, Any]] = {}  # by id(run); the run is kept so that its id stays taken
        self._numbers: dict[Any, int] = {}  # small numbers in place of recipes and phases, which are slow to hash
        self._milestones = Milestones(self._trunk, steps)
        for run, own in runs:
            self._milestones.add(run, own)

    def add(self, run: Run, step: int) -> None:
        """Add a trial that trains `run` to `step`."""
        for number in self.chain(run, step):
            self.segments[number].users += 1
        if teacher := run.phases[0].teacher:
            self.segments[self.chain(teacher.run, teacher.step)[-1]].pupils += 1

    def chain(self, run: Run, step: int) -> list[int]:
        """The numbers of the segments of `run` from 0 to `step`, in order."""
        name = (self._structure(run), step)
        if name not in self._chains:
            self._chains[name] = self._cut(run, step)
        return self._chains[name]

    def identity(self, run: Run, step: int) -> Any:
        """A hashable value that is equal for two runs exactly when their histories at `step` are equal."""
        return self._trunk(run, step), step

    def _cut(self, run: Run, step: int) -> list[int]:
        numbers: list[int] = []
        begin = 0
        for end in [*self._milestones.between(run, 0, step), step]:
            name = self.identity(run, end)
            if name not in self._by_identity:
                phase = run.phase_after(begin)
                teacher = self.chain(phase.teacher.run, phase.teacher.step)[-1] if phase.teacher else None
                parent = numbers[-1] if numbers else None
                self._by_identity[name] = len(self.segments)
                self.segments.append(Segment(len(self.segments), begin, end, run, phase.term.kind, parent, teacher))
            numbers.append(self._by_identity[name])
            begin = end
        return numbers

    def _trunk(self, run: Run, step: int) -> Any:
        """The structure of a run's history up to `step`, without where it ends."""
        recipe, phases = self._structure(run)
        ended = [phase for phase in phases if phase[1] < step]
        return recipe, *ended, phases[len(ended)][0]

    def _structure(self, run: Run) -> Any:
        if id(run) not in self._structures:
            recipe = self._number(tuple(getattr(run, name) for name in _RECIPE))
            phases = tuple((self._number(self._phase(phase)), phase.until) for phase in run.phases)
            self._structures[id(run)] = (run, (recipe, phases))
        return self._structures[id(run)][1]

    def _number(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def _phase(self, phase: Phase) -> Any:
        teacher = phase.teacher
        taught_by = None
        if teacher:
            taught_by = (self.identity(teacher.run, teacher.step), teacher.weights, teacher.precision)
        return (phase.term, phase.projector_width, phase.encoder, taught_by)
