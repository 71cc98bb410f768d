"""A study as Optuna sees it: in memory for its samplers, in a database for optuna-dashboard. Both are only told.

PRUNED and FAIL are told as what they are, with the metric at the training steps.
"""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState as OptunaState

from raysweep.space import domains, runs
from raysweep.space.domains import Domain, Point, label
from raysweep.study.state import StudyState
from raysweep.study.trial import State, TrialState

DIRECTIONS = {
    None: (StudyDirection.MINIMIZE,),
    "steps": (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE),
    "is": (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE),
}
_STATES = {"COMPLETE": OptunaState.COMPLETE, "PRUNED": OptunaState.PRUNED, "FAILED": OptunaState.FAIL}


class View:
    """A study of ours in one of Optuna's storages. A trial is RUNNING in it from its proposal to its end.

    Args:
        tree: the domains that Optuna knows of.
        ordered: choices of numbers are told as their places in ascending order, so that a sampler knows which are near
            to each other.
    """

    def __init__(self, study: StudyState, tree: Any, storage: BaseStorage, ordered: bool = False):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=study.space.id,
            load_if_exists=True,
            directions=DIRECTIONS[study.space.search.second_objective],
        )
        self.numbers: dict[int, int] = {}  # ours -> Optuna's
        self._study, self._tree, self._storage, self._ordered = study, tree, storage, ordered

    def begin(self, trial: TrialState) -> None:
        """Tell that a trial is under way; once more, where it is tried again.

        Raises:
            WrongDomain: it lies outside what this view knows of.
        """
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}

        def choose(path: str, domain: Domain) -> Any:
            value = domain.match(trial.point.get(path), path)
            params[path], distributions[path] = told(domain, value, self._ordered), self.distribution(domain)
            return value

        domains.substitute(self._tree, choose)
        begun = optuna.trial.create_trial(
            state=OptunaState.RUNNING,
            params=params,
            distributions=distributions,
            user_attrs={"trial": trial.number},
        )
        study_id = self._storage.get_study_id_from_name(self.optuna.study_name)
        made = self._storage.create_new_trial(study_id, template_trial=begun)
        self.numbers[trial.number] = self._storage.get_trial_number_from_id(made)

    def end(self, trial: TrialState, state: State) -> None:
        """Tell what became of a trial that was begun. Stands being repeated."""
        number, metric = self.numbers[trial.number], self._study.metric
        study_id = self._storage.get_study_id_from_name(self.optuna.study_name)
        known = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        if self._storage.get_trial(known).state.is_finished():
            return
        for step, metrics in trial.probes.items():
            self._storage.set_trial_intermediate_value(known, step, metrics[metric])
        self._storage.set_trial_user_attr(known, "reason", trial.reason)
        theirs = _STATES[state]
        second = self._study.space.search.second_objective
        if second and theirs == OptunaState.PRUNED:  # Optuna knows no pruning by two objectives
            theirs = OptunaState.COMPLETE if second == "steps" else OptunaState.FAIL
        self.optuna.tell(number, self._values(trial) if theirs == OptunaState.COMPLETE else None, state=theirs)

    def _values(self, trial: TrialState) -> list[float]:
        last = trial.probes[trial.step]
        found = {
            "steps": float(trial.step + runs.teacher_steps(self._study.run(trial))),
            "is": last.get(self._study.space.probe.name("is"), math.nan),
        }
        second = self._study.space.search.second_objective
        return [last[self._study.metric], *([found[second]] if second else [])]

    def distribution(self, domain: Domain) -> BaseDistribution:
        """A domain as this view knows it."""
        return distribution(domain, self._ordered)

    def suggested(self, asked: optuna.Trial) -> Point:
        """Where Optuna would have a trial."""
        point: Point = {}

        def choose(path: str, domain: Domain) -> Any:
            known = self.distribution(domain)
            if isinstance(known, CategoricalDistribution):
                value = domain.match(asked.suggest_categorical(path, known.choices), path)
            elif isinstance(known, IntDistribution):
                number = asked.suggest_int(path, known.low, known.high)
                value = sorted(domain.options)[number] if _by_place(domain, self._ordered) else number
            else:
                low, high = domain.options
                value = asked.suggest_float(path, low, high, log=domain.kind == "log_uniform")
            point[path] = value
            return value

        domains.substitute(self._tree, choose)
        return point


def distribution(domain: Domain, ordered: bool = False) -> BaseDistribution:
    """A domain as Optuna knows it; with `ordered`, a choice of numbers as its places in ascending order."""
    low, high = domain.options[0], domain.options[-1]
    if domain.kind == "integers":
        return IntDistribution(low, high)
    if domain.kind != "choice":
        return FloatDistribution(low, high, log=domain.kind == "log_uniform")
    if _by_place(domain, ordered):
        return IntDistribution(0, len(domain.options) - 1)
    return CategoricalDistribution([label(option) for option in domain.options])


def told(domain: Domain, value: Any, ordered: bool = False) -> Any:
    """A value of a domain as Optuna is told it."""
    return sorted(domain.options).index(value) if _by_place(domain, ordered) else label(value)


def _by_place(domain: Domain, ordered: bool) -> bool:
    return ordered and domain.kind == "choice" and domain.ordered
