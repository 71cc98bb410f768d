"""The tree of stages behind runs: what they have in common, told from their structure alone.

A *stage* is a stretch of one history between two steps at which runs publish. Two runs share a stage when their
histories at its end are equal. Here histories are told apart without the identity of data that may not be on this
machine: no key is computed, nothing is read but the runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.planning import price
from raysweep.space import runs
from trainables.config import Phase, Recipe, Run

_RECIPE = tuple(Recipe.model_fields)


@dataclass
class Segment:
    """Steps `begin` to `end` of a history. `parent` and `teacher` are numbers of other stages, which come before."""

    number: int
    begin: int
    end: int
    run: Run
    kind: str
    parent: int | None
    teacher: int | None
    users: int = 0  # trials that train through it as their own
    pupils: int = 0  # trials that are taught by its end

    @property
    def steps(self) -> int:
        return self.end - self.begin

    @property
    def gpu_s(self) -> float:
        return self.steps * price.step_gpu_s(self.run, self.kind)


class Tree:
    """Stages by the structure of the history at their end, cut at `milestones`."""

    def __init__(self, milestones: Sequence[int]):
        self.segments: list[Segment] = []
        self._milestones = milestones
        self._stage_of: dict[Any, int] = {}
        self._chains: dict[tuple[Any, int], list[int]] = {}
        self._shapes: dict[int, tuple[Run, Any]] = {}  # by identity; the run is kept, so that it stays its own
        self._numbers: dict[Any, int] = {}  # small names for recipes and phases: hashing those takes long

    def add(self, run: Run, step: int) -> None:
        """Note that a trial trains `run` to `step`."""
        for number in self.chain(run, step):
            self.segments[number].users += 1
        if teacher := run.phases[0].teacher:
            self.segments[self.chain(teacher.run, teacher.step)[-1]].pupils += 1

    def needs(self, run: Run, step: int) -> Iterator[int]:
        """The stages of `run` to `step` and of all its teachers."""
        if step:
            yield from self.chain(run, step)
            for teacher in runs.teachers(run):
                yield from self.chain(teacher.run, teacher.step)

    def chain(self, run: Run, step: int) -> list[int]:
        """The stages of `run` from 0 to `step`, in order."""
        name = (self._shape(run), step)
        if name not in self._chains:
            self._chains[name] = self._stages(run, step)
        return self._chains[name]

    def identity(self, run: Run, step: int) -> Any:
        """Equal for two runs when their histories at `step` are, and only then."""
        recipe, phases = self._shape(run)
        begins = (0, *(until for _, until in phases))
        return (
            recipe,
            step,
            *((n, min(until, step)) for (n, until), b in zip(phases, begins, strict=False) if b < step),
        )

    def _stages(self, run: Run, step: int) -> list[int]:
        found: list[int] = []
        begin = 0
        for end in [*(m for m in self._milestones if m < step), step]:
            name = self.identity(run, end)
            if name not in self._stage_of:
                phase = run.phase_after(begin)
                taught = self.chain(phase.teacher.run, phase.teacher.step)[-1] if phase.teacher else None
                parent = found[-1] if found else None
                self._stage_of[name] = len(self.segments)
                self.segments.append(Segment(len(self.segments), begin, end, run, phase.term.kind, parent, taught))
            found.append(self._stage_of[name])
            begin = end
        return found

    def _shape(self, run: Run) -> Any:
        if id(run) not in self._shapes:
            recipe = self._number(tuple(getattr(run, name) for name in _RECIPE))
            phases = tuple((self._number(self._phase(phase)), phase.until) for phase in run.phases)
            self._shapes[id(run)] = (run, (recipe, phases))
        return self._shapes[id(run)][1]

    def _number(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def _phase(self, phase: Phase) -> Any:
        taught = phase.teacher
        named = (self.identity(taught.run, taught.step), taught.weights) if taught else None
        return (phase.term, phase.projector_width, phase.encoder, named)
