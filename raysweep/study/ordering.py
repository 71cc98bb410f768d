"""The order in which a study receives the results of its probes. It does not depend on when lanes finish them.

ASHA and TPE decide by the results that are known so far. If results were received in order of arrival, decisions would
depend on timing: on the number and speed of lanes, and on failures. Therefore a study has a time of its own, counted in
optimizer steps. A trial starts at the time at which the trial before it in its place ended, and its time grows with its
steps. An exploration receives results in the order of these times. The same space then leads to the same decisions, on
one lane or a hundred, with or without failures. A result that arrives early is kept until its turn; its lane does other
work meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raysweep.study.rungs import Recheck
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState


@dataclass(frozen=True)
class RungTask:
    """A trial's training to its next rung at `step`, and the probe there. With a recheck instead: a second probe, at
    that step, of the trial and of its rival."""

    trial: int
    step: int
    recheck: Recheck | None = None

    @property
    def trials(self) -> list[int]:
        """The trials that are probed at its end."""
        return [self.trial, self.recheck.rival] if self.recheck else [self.trial]


class EventOrder:
    """Gives out the rung tasks of a study's trials, and passes their results to the study in the study's own order.

    Args:
        propose: adds a new trial to the study and returns it; None when there is none to try.
        under_way: how many trials are under way at once. The results of an exploration depend on it.
    """

    def __init__(self, study: StudyState, propose: Callable[[], TrialState | None], under_way: int):
        self.study, self._propose, self._places = study, propose, under_way
        # By number, for each trial under way: when its next rung task ends, in the study's own time; and the number.
        self._due: dict[int, tuple[int, int]] = {}
        self._given_out: set[int] = set()  # trials whose rung task was given out
        self._results: dict[int, Callable[[], TrialState]] = {}  # trial -> passes its result to the study
        self._exhausted = False
        for trial in study.distinct:
            self._schedule(trial)

    def next(self) -> RungTask | None:
        """The next rung task to begin: the one that is due first. None if there is none for now."""
        self._advance()
        ready = [due for number, due in self._due.items() if number not in self._given_out]
        if not ready:
            return None
        _, number = min(ready)
        self._given_out.add(number)
        trial = self.study.trials[number]
        return RungTask(number, self.study.next_rung(trial), trial.recheck)

    @property
    def finished(self) -> bool:
        """Whether all trials have ended and there is none to try."""
        return self._exhausted and not self._due

    def probed(self, rung_task: RungTask, metrics: Mapping[str, float]) -> None:
        """Record that a rung task has ended with these metrics."""
        if rung_task.recheck:
            self._results[rung_task.trial] = lambda: self.study.rechecked(rung_task.trial)
        else:
            self._results[rung_task.trial] = lambda: self.study.probed(rung_task.trial, rung_task.step, metrics)
        self._advance()

    def failed(self, rung_task: RungTask, reason: str, again: bool = False) -> None:
        """Record that a rung task cannot be finished. With `again`, the next driver tries it once more."""
        self._results[rung_task.trial] = lambda: self.study.fail(rung_task.trial, reason, again)
        self._advance()

    def _advance(self) -> None:
        """Pass to the study all results whose turn it is, and start trials in the places that become free."""
        while True:
            self._fill_places()
            number = self._next_result()
            if number is None:
                return
            self._schedule(self._results.pop(number)())
            self._given_out.discard(number)

    def _fill_places(self) -> None:
        self._exhausted = False
        while len(self._due) < self._places and not self._exhausted:
            trial = self.study.promote() or self._propose()
            if trial is None and not self._due:  # no other trial will come to be compared with those that wait
                trial = self.study.promote(last=True)
                if trial is None:
                    self.study.prune_waiting()
            if trial:
                self._schedule(trial)
            else:
                self._exhausted = True

    def _schedule(self, trial: TrialState) -> None:
        if trial.ended or trial.waits:
            self._due.pop(trial.number, None)
        else:
            self._due[trial.number] = (trial.at + self.study.next_rung(trial), trial.number)

    def _next_result(self) -> int | None:
        """The trial whose result the study receives next, if it has arrived."""
        if not self.study.explores:  # no scheduler decides, so the order does not matter
            return min(self._results, default=None)
        _, first = min(self._due.values(), default=(0, -1))
        return first if first in self._results else None
