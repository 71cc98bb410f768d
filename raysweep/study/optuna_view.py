"""Copies of a study in Optuna's storages: in memory for its samplers, in a database for optuna-dashboard.

Information flows from our study to Optuna only. Pruned and failed trials keep these states, with the metric at each
probed step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from trainables.redaction import public

DIRECTIONS = {
    None: (StudyDirection.MINIMIZE,),
    "steps": (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE),
    "is": (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE),
}
_STATES = {"COMPLETE": OptunaState.COMPLETE, "PRUNED": OptunaState.PRUNED, "FAILED": OptunaState.FAIL}


class View:
    """A copy of a study in one of Optuna's storages. A trial is RUNNING there from its proposal to its end.

    Args:
        tree: the tree whose domains Optuna's study has.
        ordered: whether a choice of numbers becomes their positions in ascending order, so that a sampler knows which
            numbers are close to each other.
    """

    def __init__(self, study: StudyState, tree: Any, storage: BaseStorage, ordered: bool = False):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=study.space.id,
            load_if_exists=True,
            directions=DIRECTIONS[study.space.search.second_objective],
        )
        self.numbers: dict[int, int] = {}  # Optuna's trial numbers by ours
        self._study, self._tree, self._storage, self._ordered = study, tree, storage, ordered

    def begin(self, trial: TrialState) -> None:
        """Add a trial under way. A trial that is tried again is added again.

        Raises:
            WrongDomain: it lies outside the view's domains.
        """
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}

        def choose(path: str, domain: Domain) -> Any:
            value = domain.match(trial.point.get(path), path)
            params[path], distributions[path] = optuna_value(domain, value, self._ordered), self.distribution(domain)
            return value

        domains.substitute(self._tree, choose)
        template = optuna.trial.create_trial(
            state=OptunaState.RUNNING,
            params=params,
            distributions=distributions,
            user_attrs={"trial": trial.number},
        )
        study_id = self._storage.get_study_id_from_name(self.optuna.study_name)
        made = self._storage.create_new_trial(study_id, template_trial=template)
        self.numbers[trial.number] = self._storage.get_trial_number_from_id(made)

    def end(self, trial: TrialState, state: State) -> None:
        """Set the final state of a trial that was added. May be repeated."""
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
        if second and theirs == OptunaState.PRUNED:  # Optuna does not prune with two objectives
            theirs = OptunaState.COMPLETE if second == "steps" else OptunaState.FAIL
        self.optuna.tell(number, self._values(trial) if theirs == OptunaState.COMPLETE else None, state=theirs)

    def _values(self, trial: TrialState) -> list[float]:
        last = trial.probes[trial.step]
        values = {
            "steps": float(trial.step + runs.teacher_steps(self._study.run(trial))),
            "is": last.get(self._study.space.probe.name("is"), math.nan),
        }
        second = self._study.space.search.second_objective
        return [last[self._study.metric], *([values[second]] if second else [])]

    def distribution(self, domain: Domain) -> BaseDistribution:
        """Optuna's distribution for a domain in this view."""
        return distribution(domain, self._ordered)

    def suggested(self, asked: optuna.Trial) -> Point:
        """The point that Optuna suggests for a trial that its `ask` returned."""
        point: Point = {}

        def choose(path: str, domain: Domain) -> Any:
            known = self.distribution(domain)
            if isinstance(known, CategoricalDistribution):
                value = domain.options[_position(known.choices, asked.suggest_categorical(path, known.choices))]
            elif isinstance(known, IntDistribution):
                number = asked.suggest_int(path, known.low, known.high)
                value = sorted(domain.options)[number] if _by_position(domain, self._ordered) else number
            else:
                low, high = domain.options
                value = asked.suggest_float(path, low, high, log=domain.kind == "log_uniform")
            point[path] = value
            return value

        domains.substitute(self._tree, choose)
        return point


def distribution(domain: Domain, ordered: bool = False) -> BaseDistribution:
    """Optuna's distribution for a domain; with `ordered`, a choice of numbers becomes positions in ascending order."""
    low, high = domain.options[0], domain.options[-1]
    if domain.kind == "integers":
        return IntDistribution(low, high)
    if domain.kind != "choice":
        return FloatDistribution(low, high, log=domain.kind == "log_uniform")
    if _by_position(domain, ordered):
        return IntDistribution(0, len(domain.options) - 1)
    return CategoricalDistribution(_labels(domain))


def optuna_value(domain: Domain, value: Any, ordered: bool = False) -> Any:
    """The value of a domain in Optuna's terms."""
    if _by_position(domain, ordered):
        return sorted(domain.options).index(value)
    return _labels(domain)[_position(domain.options, value)] if domain.kind == "choice" else value


def _labels(domain: Domain) -> list[Any]:
    """The options of a choice as Optuna stores and shows them: without secrets, and still different from each other."""
    labels = [label(option) for option in domain.options]
    shown = [public(text) if isinstance(text, str) else text for text in labels]
    return [
        f"{text} ({position})" if text != labels[position] and shown.count(text) > 1 else text
        for position, text in enumerate(shown)
    ]


def _position(values: Sequence[Any], wanted: Any) -> int:
    """The position of a value, where True and 1 are two values."""
    same = (value == wanted and isinstance(value, bool) == isinstance(wanted, bool) for value in values)
    return list(same).index(True)


def _by_position(domain: Domain, ordered: bool) -> bool:
    return ordered and domain.kind == "choice" and domain.ordered
