"""The next trials of a study: the enqueued rows, then the trials of a study that it extends, then a sampler's."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from raysweep.space import domains, runs
from raysweep.space.domains import Domain, Point, WrongDomain
from raysweep.space.space import Space
from raysweep.study.samplers import suggester
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState


class Proposals:
    """Proposes trials for a study."""

    def __init__(self, study: StudyState):
        self.study, self.space = study, study.space
        self._tree = _runnable(self.space, self.space.tree)
        proposed = {trial.row for trial in study.trials}
        self._rows = deque((number, row) for number, row in enumerate(self.space.rows) if number not in proposed)
        self._inherited = filter(self._is_new, study.inherited)
        self._suggest = suggester(study, self._tree)
        for trial in study.trials:
            self._answer_repeat(trial)

    def next(self) -> TrialState | None:
        """The next trial to train, or None when there is none to propose.

        Rows that cannot be run here, and repeats of earlier configurations, are recorded in the study without training.
        """
        while self._rows:
            if self.study.enough:
                return None
            number, row = self._rows.popleft()
            try:
                trial, point = self.space.trial(row.set)
            except WrongDomain as error:
                self.study.refuse(row.set, number, f"outside the space: {error.path}: {error}")
                continue
            if reason := runs.unavailable(trial):
                self.study.refuse(point, number, reason)
                continue
            if proposed := self._accept(point, row=number):
                return proposed
        if not self.study.explores or self.study.enough:
            return None
        inherited = next(self._inherited, None)
        return self._sample() if inherited is None else self._accept(inherited)

    def _sample(self) -> TrialState | None:
        """A sampled configuration that was not proposed before."""
        if len(self.study.distinct) >= self._most:
            return None
        point = self._suggest(self._is_new)
        return None if point is None else self._accept(point)

    @cached_property
    def _most(self) -> float:
        """The largest number of distinct trials: the points of the tree, and the rows that were refused."""
        refused = sum(trial.state == "UNAVAILABLE" for trial in self.study.distinct)
        return domains.size(self._tree) + refused

    def _is_new(self, point: Point) -> bool:
        """Whether a point was not proposed yet and can be run here. Each option can, but perhaps not their
        combination."""
        trial, full = self.space.trial(point)
        return self.study.trial_at(full) is None and runs.unavailable(trial) is None

    def _accept(self, point: Point, row: int | None = None) -> TrialState | None:
        """Add a trial; returns it if it must be trained, None if it takes an earlier trial's results."""
        trial = self.study.propose(point, row)
        self._answer_repeat(trial)
        return trial if trial.repeats is None else None

    def _answer_repeat(self, trial: TrialState) -> None:
        """End a trial that repeats one which has ended."""
        if trial.repeats is not None and not trial.ended and (earlier := self.study.trials[trial.repeats]).ended:
            self.study.end(trial.number, earlier.state, f"same as trial {earlier.number}: {earlier.reason}")


def _runnable(space: Space, node: Any, path: str = "") -> Any:
    """The tree without the options that cannot be run here when everything else has its default."""
    if isinstance(node, dict):
        return {key: _runnable(space, value, f"{path}.{key}" if path else key) for key, value in node.items()}
    if not isinstance(node, Domain) or node.kind != "choice":
        return node
    keep = [i for i, option in enumerate(node.options) if _can_run(space, path, option)] or range(len(node.options))
    branches = tuple(_runnable(space, node.branches[i], path) for i in keep)
    return replace(node, options=tuple(node.options[i] for i in keep), branches=branches)


def _can_run(space: Space, path: str, option: Any) -> bool:
    try:
        trial, _ = space.trial({path: option})
    except (WrongDomain, ValidationError):  # the option is legal only with values other than the defaults
        return True
    return runs.unavailable(trial) is None
