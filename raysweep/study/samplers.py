"""The samplers that propose configurations beyond the enqueued rows: Optuna's, and a grid.

Optuna's samplers learn from a study in memory that is built from the journal only. Each call of `ask` gets a new
sampler, seeded by the numbers of the trial and of the attempt, so that a restarted study proposes what an uninterrupted
one would have. TPE, GP and the random sampler depend only on the trials. CMA-ES and QMC also depend on the earlier
calls of `ask`, so these are repeated at the start, in the order of the journal; the next trial in the journal shows
which point was accepted.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from bisect import insort
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from raysweep.space import domains
from raysweep.space.domains import Point, WrongDomain, point_key
from raysweep.study.optuna_view import View
from raysweep.study.state import StudyState
from raysweep.study.trial import State, TrialState

TRIES = 20  # after this many unusable proposals of a sampler in a row, points are drawn at random
RANDOM_TRIES = 2000  # after this many unusable random points in a row, the space counts as exhausted
CANDIDATES = 24  # TPE proposes the best of this many; Optuna's default
MOST = 500  # most ended trials that TPE learns from, drawn at random: its time grows with their square
GOOD = 25  # the best trials, from which TPE always learns and which it compares with the others; Optuna's default
REMEMBER = ("cmaes", "qmc")  # samplers whose points depend on earlier calls of `ask`
ORDERED = ("cmaes", "gp")  # samplers that use the order of the numbers in a choice

IsUseful = Callable[[Point], bool]
Suggest = Callable[[IsUseful], Point | None]


def suggester(study: StudyState, tree: Any) -> Suggest:
    """The sampler of `search.sampler`: a function that returns a useful point of `tree`, or None when there is none."""
    return _Grid(tree) if study.space.search.sampler == "grid" else _OptunaSampler(study, tree)


class _Grid:
    """Every point, in the order of the file."""

    def __init__(self, tree: Any):
        self._points: Iterator[Point] = domains.grid(tree)

    def __call__(self, is_useful: IsUseful) -> Point | None:
        return next(filter(is_useful, self._points), None)


class _OptunaSampler:
    """Proposals of one of Optuna's samplers; random points where the sampler only repeats itself."""

    def __init__(self, study: StudyState, tree: Any):
        self._study, self._tree, self._search = study, tree, study.space.search
        bounded = self._search.sampler == "tpe" and self._search.second_objective is None
        storage = Recall() if bounded else InMemoryStorage()
        self._view = View(study, tree, storage, ordered=self._search.sampler in ORDERED)
        self._accepted: optuna.Trial | None = None  # its point was accepted, but the study has no trial for it yet
        self._replay()
        study.watchers.append(self._update)

    def __call__(self, is_useful: IsUseful) -> Point | None:
        number = len(self._study.trials)
        if point := self._ask(number, is_useful):
            return point
        chance = random.Random(self._seed(number, TRIES))
        points = (domains.random_point(self._tree, chance) for _ in range(RANDOM_TRIES))
        return next(filter(is_useful, points), None)

    def _ask(self, number: int, is_useful: IsUseful) -> Point | None:
        """The sampler's first useful point. Rejected points count as trials under way meanwhile, so that the sampler
        proposes others."""
        rejected: list[optuna.Trial] = []
        accepted = None
        for attempt in range(TRIES):
            self._view.optuna.sampler = self._sampler(number, attempt)
            asked = self._view.optuna.ask()
            point = self._view.suggested(asked)
            if is_useful(point):
                accepted, self._accepted = point, asked
                break
            rejected.append(asked)
        if self._accepted and self._search.sampler not in REMEMBER:
            rejected.append(self._accepted)  # the trial is added from the journal instead, as after a restart
            self._accepted = None
        for asked in rejected:
            self._view.optuna.tell(asked.number, state=OptunaState.FAIL)
        return accepted

    def _seed(self, number: int, attempt: int) -> int:
        return (self._search.seed * 1_000_003 + number * (TRIES + 1) + attempt) % 2**32

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        seed, startup = self._seed(number, attempt), self._search.startup_trials
        random_sampler = RandomSampler(seed=seed)
        candidates = max(1, CANDIDATES >> attempt)  # fewer after each attempt, because the best of many repeats itself
        open_domains = domains.unconditional_domains(self._tree)
        open_space = {path: self._view.distribution(domain) for path, domain in open_domains.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            match self._search.sampler:
                case "tpe":
                    return TPESampler(
                        seed=seed,
                        n_startup_trials=startup,
                        n_ei_candidates=candidates,
                        multivariate=True,
                        group=True,
                        constant_liar=True,
                    )
                case "gp":
                    return GPSampler(seed=seed, n_startup_trials=startup, independent_sampler=random_sampler)
                case "cmaes":
                    return _CmaEs(open_space, seed, startup, random_sampler)
                case "qmc":
                    return _Qmc(open_space, self._search.seed, random_sampler)
        return random_sampler

    # --- from the journal

    def _replay(self) -> None:
        inherited = {point_key(point) for point in self._study.inherited}
        for entry in self._study.journal.read():
            if entry["kind"] not in ("proposed", "ended", "retried"):
                continue
            trial = self._study.trials[entry["trial"]]
            if entry["kind"] == "ended":
                self._end(trial, entry["state"])
                continue
            if entry["kind"] == "proposed" and trial.row is None and point_key(trial.point) not in inherited:
                self._ask_again(trial)
            self._begin(trial)

    def _ask_again(self, trial: TrialState) -> None:
        """Repeat the call of `ask` that led to a trial."""
        if self._search.sampler in REMEMBER:
            wanted = point_key(trial.point)
            self._ask(trial.number, lambda point: point_key(point) == wanted)

    def _update(self, trial: TrialState) -> None:
        if trial.number not in self._view.numbers:
            self._begin(trial)
        if trial.ended:
            self._end(trial, trial.state)

    def _begin(self, trial: TrialState) -> None:
        if trial.state == "UNAVAILABLE" or trial.repeats is not None:
            return
        if self._accepted:
            self._view.numbers[trial.number] = self._accepted.number
            self._accepted = None
            return
        # A trial that another machine proposed may have options that this machine cannot run and so does not sample.
        with contextlib.suppress(WrongDomain):
            self._view.begin(trial)

    def _end(self, trial: TrialState, state: State) -> None:
        if trial.number in self._view.numbers:
            self._view.end(trial, state)


class Recall(InMemoryStorage):
    """The trials that TPE learns from: all that are under way, the `GOOD` best that have ended, and `MOST` at random.

    TPE estimates the density of the best and of the other trials, for which a sample is enough. The draw is seeded by
    the numbers of our trials, so that a restarted study draws the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._under_way: set[int] = set()  # Optuna's ids of trials, which only grow
        self._good: list[tuple[Any, int]] = []
        self._drawn: list[tuple[Any, int]] = []

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        made = super().create_new_trial(study_id, template_trial)
        self._under_way.add(made)
        return made

    def set_trial_state_values(self, trial_id: int, state: OptunaState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._under_way.discard(trial_id)
        if state in (OptunaState.COMPLETE, OptunaState.PRUNED):
            trial = self.get_trial(trial_id)
            chance = random.Random(trial.user_attrs["trial"]).random()
            for kept, rank, most in ((self._good, _rank(trial), GOOD), (self._drawn, chance, MOST)):
                insort(kept, (rank, trial_id))
                del kept[most:]
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[OptunaState] | None = None
    ) -> list[FrozenTrial]:
        if len(self._drawn) < MOST:  # none is left out
            return super().get_all_trials(study_id, deepcopy, states)
        ids = self._under_way.union(trial_id for _, trial_id in self._good + self._drawn)
        trials = [self.get_trial(trial_id) for trial_id in sorted(ids)]
        chosen = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen


def _rank(trial: FrozenTrial) -> tuple[float, ...]:
    """The order in which TPE ranks trials, best first: complete ones by value, then pruned ones, longest first."""
    if trial.state == OptunaState.COMPLETE:
        return (-math.inf, trial.values[0])
    step = trial.last_step
    return (1, 0.0) if step is None else (-step, trial.intermediate_values[step])


class _CmaEs(CmaEsSampler):
    """CMA-ES over the numeric domains that every configuration has. Optuna would use those that all trials so far
    have."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int, startup: int, chance: BaseSampler):
        super().__init__(seed=seed, n_startup_trials=startup, independent_sampler=chance, consider_pruned_trials=True)
        categorical = optuna.distributions.CategoricalDistribution
        self._space = {
            path: domain
            for path, domain in space.items()
            if not domain.single() and not isinstance(domain, categorical)
        }

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space


class _Qmc(QMCSampler):
    """A scrambled Sobol sequence over all domains that every configuration has, from the first trial on."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int, chance: BaseSampler):
        super().__init__(seed=seed, scramble=True, independent_sampler=chance)
        self._space = {path: domain for path, domain in space.items() if not domain.single()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space
