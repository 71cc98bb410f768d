"""A study in a database that optuna-dashboard reads."""

from __future__ import annotations

import warnings
from functools import partial

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState as OptunaState

from raysweep.retry import Notify, retry_storage
from raysweep.study.optuna_view import View
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState


class Dashboard(View):
    """The view that is kept, for optuna-dashboard. Made to agree with the journal at the start, told from then on.

    Args:
        storage: where, e.g. `sqlite:///…`.
        tell: is told when that has to be waited for.
    """

    def __init__(self, study: StudyState, storage: str | None, tell: Notify = lambda message: None):
        super().__init__(study, study.space.tree, optuna.storages.get_storage(storage))
        self._say = tell
        second = {None: [], "steps": ["steps"], "is": [study.space.probe.name("is")]}
        with warnings.catch_warnings():  # of what is experimental in Optuna: else axes say "Objective 0"
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.optuna.set_metric_names([study.metric, *second[study.space.search.second_objective]])
        self._adopt()
        for trial in study.trials:
            self._hear(trial)
        study.watchers.append(self._hear)

    def _hear(self, trial: TrialState) -> None:
        if trial.state == "UNAVAILABLE":
            return
        if trial.number not in self.numbers:
            retry_storage(partial(self.begin, trial), self._say, StorageInternalError)
        if trial.ended:
            retry_storage(partial(self.end, trial, trial.state), self._say, StorageInternalError)

    def _adopt(self) -> None:
        """Know the trials of an earlier driver again; what is there of none, or of one that is tried again, is over."""
        trials = self._study.trials
        for known in self.optuna.get_trials(deepcopy=False):
            ours = known.user_attrs.get("trial", len(trials))
            finished = known.state.is_finished()
            if ours < len(trials) and (trials[ours].ended or not finished):
                self.numbers[ours] = known.number
            elif known.state == OptunaState.WAITING:
                self.optuna.tell(self.optuna.ask().number, state=OptunaState.FAIL)
            elif not finished:
                self.optuna.tell(known.number, state=OptunaState.FAIL)
