"""What to try next: the enqueued rows, what an extended study tried, then Optuna's TPE. The only module that knows
Optuna.

Optuna's study is a view of the journal's: it is told PRUNED and FAIL as what they are, at the training step, and what a
crash left asked and never told is told at the next start. Its sampler is seeded anew for every proposal, so that a
restarted study proposes what an undisturbed one would have.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState as OptunaState
from pydantic import ValidationError

from raysweep import domains, runs
from raysweep.domains import Domain, Point, WrongDomain, label
from raysweep.patience import Tell, patiently
from raysweep.space import Space
from raysweep.study import Study
from raysweep.trials import TrialState

TRIES = 20  # proposals of TPE in a row that repeat earlier ones, before chance takes over
RANDOM_TRIES = 2000  # the same of chance, before the space counts as exhausted
_STATES = {
    "COMPLETE": OptunaState.COMPLETE,
    "PRUNED": OptunaState.PRUNED,
    "FAILED": OptunaState.FAIL,
}


class Proposals:
    """Proposes trials for a study and tells Optuna what became of them.

    Args:
        storage: where Optuna keeps its study, e.g. `sqlite:///…`; optuna-dashboard reads the same.
        tell: is told when that has to be waited for.
    """

    def __init__(self, study: Study, storage: str | None, tell: Tell = lambda message: None):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study, self.space = study, study.space
        self._storage = optuna.storages.get_storage(storage)
        self._optuna = optuna.create_study(storage=self._storage, study_name=study.space.id, load_if_exists=True)
        self._tree = _runnable(self.space, self.space.tree)
        self._numbers: dict[int, int] = {}  # ours -> Optuna's
        self._say = tell
        self._restore()
        study.watchers.append(self._tell)

    def next(self) -> TrialState | None:
        """The next trial to train, or None when all has been proposed.

        Rows that cannot be run here and repeats of earlier configurations are noted on the way and need no training.
        """
        done = {trial.row for trial in self.study.trials if trial.row is not None}
        for number, row in enumerate(self.space.rows):
            if number in done:
                continue
            if self.study.enough:
                return None
            try:
                trial, point = self.space.trial(row.set)
            except WrongDomain as error:
                self.study.refuse(row.set, number, f"outside the space: {error.path}: {error}")
                continue
            if reason := runs.unavailable(trial):
                self.study.refuse(point, number, reason)
                continue
            if proposed := self._accept(self._ask(point)[0], point, row=number):
                return proposed
        if self.space.search.mode == "reproduce":
            return None
        for point in self.study.inherited:
            if self.study.enough:
                return None
            if self._is_new(point):
                return self._accept(self._ask(point)[0], point)
        return self._sample()

    def _sample(self) -> TrialState | None:
        """A configuration that was not proposed before, as TPE sees fit, or at random where TPE only repeats itself."""
        points = domains.size(self._tree)
        runnable = sum(trial.state != "UNAVAILABLE" for trial in self.study.distinct)
        if self.study.enough or runnable >= points:
            return None
        for attempt in range(TRIES):
            asked, point = self._ask(None, attempt)
            if self._is_new(point):
                return self._accept(asked, point)
            self._optuna.tell(asked.number, state=OptunaState.FAIL)
        chance = random.Random(self._seed(TRIES))
        for _ in range(RANDOM_TRIES):
            if self._is_new(point := domains.random_point(self._tree, chance)):
                return self._accept(self._ask(point)[0], point)
        return None

    def _is_new(self, point: Point) -> bool:
        """Whether it can be run (each of its options can, but perhaps not all of them together), and was not yet."""
        trial, full = self.space.trial(point)
        return self.study.same(full) is None and runs.unavailable(trial) is None

    def _seed(self, attempt: int) -> int:
        """By what the journal knows: Optuna's own count of trials includes what crashes left."""
        return (self.space.search.seed * 1_000_003 + len(self.study.trials) * (TRIES + 1) + attempt) % 2**32

    def _ask(self, point: Point | None, attempt: int = 0) -> tuple[optuna.Trial, Point]:
        """Optuna's next trial, at `point` if that is given, and where it is."""
        return patiently(partial(self._ask_once, point, attempt), self._say, StorageInternalError)

    def _ask_once(self, point: Point | None, attempt: int) -> tuple[optuna.Trial, Point]:
        self._drop_waiting()  # an attempt that a full disk cut short may have left one
        startup = self.space.search.startup_trials
        self._optuna.sampler = optuna.samplers.TPESampler(seed=self._seed(attempt), n_startup_trials=startup)
        if point is not None:
            self._optuna.enqueue_trial({path: label(value) for path, value in point.items()})
        asked = self._optuna.ask()
        chosen: Point = {}

        def choose(path: str, domain: Domain) -> Any:
            chosen[path] = _suggest(asked, path, domain)
            return chosen[path]

        domains.walk(self._tree, choose)
        return asked, chosen

    def _accept(self, asked: optuna.Trial, point: Point, row: int | None = None) -> TrialState | None:
        """Note the proposal; the trial if it must be trained, None if an earlier one answers for it."""
        asked.set_user_attr("trial", len(self.study.trials))
        self._numbers[len(self.study.trials)] = asked.number
        trial = self.study.propose(point, row)
        self._answer_repeat(trial)
        return trial if trial.repeats is None else None

    def _answer_repeat(self, trial: TrialState) -> None:
        """End a repeat whose earlier trial has ended."""
        if trial.repeats is not None and not trial.ended and (earlier := self.study.trials[trial.repeats]).ended:
            self.study.end(trial.number, earlier.state, f"same as trial {earlier.number}: {earlier.reason}")

    # --- Optuna's view

    def _tell(self, trial: TrialState) -> None:
        if trial.number in self._numbers and trial.ended:
            patiently(partial(self._tell_once, trial, self._numbers[trial.number]), self._say, StorageInternalError)

    def _tell_once(self, trial: TrialState, number: int) -> None:
        storage = self._storage
        study_id = storage.get_study_id_from_name(self._optuna.study_name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        if storage.get_trial(trial_id).state.is_finished():
            return
        for step, metrics in trial.probes.items():
            storage.set_trial_intermediate_value(trial_id, step, metrics[self.study.metric])
        storage.set_trial_user_attr(trial_id, "reason", trial.reason)
        state = _STATES[trial.state]
        value = trial.last(self.study.metric) if state == OptunaState.COMPLETE else None
        self._optuna.tell(number, value, state=state)

    def _drop_waiting(self) -> None:
        while self._optuna.get_trials(deepcopy=False, states=(OptunaState.WAITING,)):
            self._optuna.tell(self._optuna.ask().number, state=OptunaState.FAIL)

    def _restore(self) -> None:
        """Make Optuna's study agree with the journal: adopt, finish or fail what is there, add what is missing."""
        self._drop_waiting()
        for known in self._optuna.get_trials(deepcopy=False):
            ours = known.user_attrs.get("trial")
            if ours is not None and ours < len(self.study.trials):
                if known.state.is_finished() and not self.study.trials[ours].ended:
                    continue  # failed, and tried once more
                self._numbers[ours] = known.number
            elif not known.state.is_finished():
                self._optuna.tell(known.number, state=OptunaState.FAIL)
        for trial in self.study.trials:
            if trial.number not in self._numbers and trial.state != "UNAVAILABLE":
                asked, _ = self._ask(trial.point)
                asked.set_user_attr("trial", trial.number)
                self._numbers[trial.number] = asked.number
            self._answer_repeat(trial)
            self._tell(trial)


def _suggest(asked: optuna.Trial, path: str, domain: Domain) -> Any:
    if domain.kind == "choice":
        return domain.find(asked.suggest_categorical(path, [label(option) for option in domain.options]), path)
    low, high = domain.options
    if domain.kind == "integers":
        return asked.suggest_int(path, low, high)
    return asked.suggest_float(path, low, high, log=domain.kind == "log_uniform")


def _runnable(space: Space, node: Any, path: str = "") -> Any:
    """The tree without the options that cannot be run here even with everything else at its default."""
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
    except (WrongDomain, ValidationError):  # only together with other options than the defaults: cannot tell from here
        return True
    return runs.unavailable(trial) is None
