"""In which order a study hears of its probes, whatever the order in which lanes finish them.

ASHA and TPE decide by what is known so far. Taken as it comes, that would depend on timing: on the number of lanes, on
which of them is slow, on what was killed when. So every trial has a place in time that is counted in its own optimizer
steps, from where the trial ended whose place it took, and an exploration hears of its probes in this order: the same
space decides the same, on one lane or a hundred, undisturbed or not. Who comes early waits; its lane does other work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raysweep.study.rungs import Recheck
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState


@dataclass(frozen=True)
class RungTask:
    """A trial's way to its next rung, probe included; or, in doubt, one more probe of it and of its rival there."""

    trial: int
    step: int
    recheck: Recheck | None = None

    @property
    def trials(self) -> list[int]:
        """The trials that are probed at its end."""
        return [self.trial, self.recheck.rival] if self.recheck else [self.trial]


class EventOrder:
    """Gives out the legs of a study's trials, and tells the study what became of them when it is their turn.

    Args:
        propose: notes a new trial in the study and returns it; None when there is none to try.
        under_way: how many trials are on their way at once. The course of an exploration depends on it.
    """

    def __init__(self, study: StudyState, propose: Callable[[], TrialState | None], under_way: int):
        self.study, self._propose, self._places = study, propose, under_way
        self._due: dict[int, tuple[int, int]] = {}  # when the next leg of each trial under way ends; by its number
        self._away: set[int] = set()  # trials whose leg was given out
        self._early: dict[int, Callable[[], TrialState]] = {}  # what is known of a trial and not yet told
        self._exhausted = False
        for trial in study.distinct:
            self._place(trial)

    def next(self) -> RungTask | None:
        """The leg to begin now: of all that is left to do, what is due first. None when there is none for now."""
        self._settle()
        ready = [due for number, due in self._due.items() if number not in self._away]
        if not ready:
            return None
        _, number = min(ready)
        self._away.add(number)
        trial = self.study.trials[number]
        return RungTask(number, self.study.next_rung(trial), trial.recheck)

    @property
    def finished(self) -> bool:
        """Whether all trials have ended and there is none to try."""
        return self._exhausted and not self._due

    def probed(self, rung_task: RungTask, metrics: Mapping[str, float]) -> None:
        """A leg's end was reached and probed."""
        if rung_task.recheck:
            self._early[rung_task.trial] = lambda: self.study.checked(rung_task.trial)
        else:
            self._early[rung_task.trial] = lambda: self.study.probed(rung_task.trial, rung_task.step, metrics)
        self._settle()

    def failed(self, rung_task: RungTask, reason: str, again: bool = False) -> None:
        """A leg cannot be finished; with `again`, the next driver tries it once more."""
        self._early[rung_task.trial] = lambda: self.study.fail(rung_task.trial, reason, again)
        self._settle()

    def _settle(self) -> None:
        """Tell the study all that is due, and fill the places that become free."""
        while True:
            self._exhausted = False
            while len(self._due) < self._places and not self._exhausted:
                trial = self.study.promote() or self._propose()
                if trial is None and not self._due:  # whoever waits has nobody left to be compared with
                    trial = self.study.promote(last=True)
                    if trial is None:
                        self.study.prune_waiting()
                if trial:
                    self._place(trial)
                else:
                    self._exhausted = True
            number = self._turn()
            if number is None:
                return
            self._place(self._early.pop(number)())
            self._away.discard(number)

    def _place(self, trial: TrialState) -> None:
        if trial.ended or trial.waits:
            self._due.pop(trial.number, None)
        else:
            self._due[trial.number] = (trial.at + self.study.next_rung(trial), trial.number)

    def _turn(self) -> int | None:
        """The trial that the study hears of next, if that has come."""
        if self.study.space.search.mode == "reproduce":  # nothing is decided: first come, first told
            return min(self._early, default=None)
        _, first = min(self._due.values(), default=(0, -1))
        return first if first in self._early else None
