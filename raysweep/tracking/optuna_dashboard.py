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


class Dashboard:
    """Keeps a copy of a study in a database of Optuna: matched with the journal at the start, then updated.

    Args:
        storage: the database, e.g. `sqlite:///…`; None keeps it in memory.
        notify: receives a message when the sweep has to wait for the database.
    """

    def __init__(self, study: StudyState, storage: str | None, notify: Notify = lambda message: None):
        self._study, self._notify = study, notify
        self._view = View(study, study.space.tree, optuna.storages.get_storage(storage))
        second = {None: [], "steps": ["steps"], "is": [study.space.probe.name("is")]}
        with warnings.catch_warnings():  # names of metrics are experimental; without them axes say "Objective 0"
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._view.optuna.set_metric_names([study.metric, *second[study.space.search.second_objective]])
        self._find_existing()
        for trial in study.trials:
            self._update(trial)
        study.watchers.append(self._update)

    def _update(self, trial: TrialState) -> None:
        if trial.state == "UNAVAILABLE":
            return
        if trial.number not in self._view.numbers:
            retry_storage(partial(self._view.begin, trial), self._notify, StorageInternalError)
        if trial.ended:
            retry_storage(partial(self._view.end, trial, trial.state), self._notify, StorageInternalError)

    def _find_existing(self) -> None:
        """Match the trials that the database already has with ours. Those that match none, or a trial that is tried
        again, are set to failed."""
        trials = self._study.trials
        for known in self._view.optuna.get_trials(deepcopy=False):
            number = known.user_attrs.get("trial", len(trials))
            finished = known.state.is_finished()
            if number < len(trials) and (trials[number].ended or not finished):
                self._view.numbers[number] = known.number
            elif known.state == OptunaState.WAITING:
                self._view.optuna.tell(self._view.optuna.ask().number, state=OptunaState.FAIL)
            elif not finished:
                self._view.optuna.tell(known.number, state=OptunaState.FAIL)
