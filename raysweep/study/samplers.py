"""Who proposes what is not enqueued, by name: Optuna's samplers, and a grid.

Optuna's samplers learn from a study in memory that is a function of the journal. What they say twice costs no disk
then, and a restarted study proposes what an undisturbed one would have: each question has a sampler of its own, seeded
by the number of the trial and of the attempt. TPE, GP and chance know no more than the trials. CMA-ES and QMC also
remember what they were asked, so this is asked again at the start, in the journal's order; which answer was accepted,
the journal's next trial tells.
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

TRIES = 20  # proposals of a sampler in a row that are of no use, before chance takes over
RANDOM_TRIES = 2000  # the same of chance, before the space counts as exhausted
CANDIDATES = 24  # of which TPE proposes the best; Optuna's own number
MOST = 500  # trials that TPE looks at, drawn by chance from more: its time grows with their square
GOOD = 25  # the best, among those in any case: which TPE weighs against all others; Optuna's own number
REMEMBER = ("cmaes", "qmc")  # their questions, not only the trials
ORDERED = ("cmaes", "gp")  # they make use of an order among numbers that a choice lists

Good = Callable[[Point], bool]
Suggest = Callable[[Good], Point | None]


def suggester(study: StudyState, tree: Any) -> Suggest:
    """What gives a point of `tree` that is good, or None when there is none left, by `search.sampler`."""
    return _Grid(tree) if study.space.search.sampler == "grid" else _Asked(study, tree)


class _Grid:
    """Every point, in the order of the file."""

    def __init__(self, tree: Any):
        self._points: Iterator[Point] = domains.grid(tree)

    def __call__(self, good: Good) -> Point | None:
        return next(filter(good, self._points), None)


class _Asked:
    """A point as one of Optuna's samplers sees fit, or at random where that only repeats itself."""

    def __init__(self, study: StudyState, tree: Any):
        self._study, self._tree, self._search = study, tree, study.space.search
        bounded = self._search.sampler == "tpe" and self._search.second_objective is None
        storage = Recall() if bounded else InMemoryStorage()
        self._view = View(study, tree, storage, ordered=self._search.sampler in ORDERED)
        self._question: optuna.Trial | None = None  # what was accepted and has no number of ours yet
        self._replay()
        study.watchers.append(self._hear)

    def __call__(self, good: Good) -> Point | None:
        number = len(self._study.trials)
        if point := self._ask(number, good):
            return point
        chance = random.Random(self._seed(number, TRIES))
        points = (domains.random_point(self._tree, chance) for _ in range(RANDOM_TRIES))
        return next(filter(good, points), None)

    def _ask(self, number: int, good: Good) -> Point | None:
        """The first good point of the sampler's. What it said before is under way meanwhile, so that it looks
        elsewhere."""
        rejected: list[optuna.Trial] = []
        found = None
        for attempt in range(TRIES):
            self._view.optuna.sampler = self._sampler(number, attempt)
            asked = self._view.optuna.ask()
            point = self._view.suggested(asked)
            if good(point):
                found, self._question = point, asked
                break
            rejected.append(asked)
        if self._question and self._search.sampler not in REMEMBER:
            rejected.append(self._question)  # the trial is told as the journal has it, live and at a restart
            self._question = None
        for asked in rejected:
            self._view.optuna.tell(asked.number, state=OptunaState.FAIL)
        return found

    def _seed(self, number: int, attempt: int) -> int:
        return (self._search.seed * 1_000_003 + number * (TRIES + 1) + attempt) % 2**32

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        seed, startup = self._seed(number, attempt), self._search.startup_trials
        chance = RandomSampler(seed=seed)
        candidates = max(1, CANDIDATES >> attempt)  # the best of many is the same again and again: take it of fewer
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
                    return GPSampler(seed=seed, n_startup_trials=startup, independent_sampler=chance)
                case "cmaes":
                    return _CmaEs(open_space, seed, startup, chance)
                case "qmc":
                    return _Qmc(open_space, self._search.seed, chance)
        return chance

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
        """Ask what led to a trial."""
        if self._search.sampler in REMEMBER:
            wanted = point_key(trial.point)
            self._ask(trial.number, lambda point: point_key(point) == wanted)

    def _hear(self, trial: TrialState) -> None:
        if trial.number not in self._view.numbers:
            self._begin(trial)
        if trial.ended:
            self._end(trial, trial.state)

    def _begin(self, trial: TrialState) -> None:
        if trial.state == "UNAVAILABLE" or trial.repeats is not None:
            return
        if self._question:
            self._view.numbers[trial.number] = self._question.number
            self._question = None
            return
        with contextlib.suppress(WrongDomain):  # another machine could run it: nothing that can be searched here
            self._view.begin(trial)

    def _end(self, trial: TrialState, state: State) -> None:
        if trial.number in self._view.numbers:
            self._view.end(trial, state)


class Recall(InMemoryStorage):
    """What TPE learns from: all trials under way, the `GOOD` best that have ended, and `MOST` that chance has drawn.

    TPE asks how dense the best lie and how dense the others, which a sample tells as well. Chance goes by the numbers
    of our trials, so that a restarted study draws the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._under_way: set[int] = set()  # Optuna's names of trials, which rise
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
        names = self._under_way.union(name for _, name in self._good + self._drawn)
        trials = [self.get_trial(name) for name in sorted(names)]
        shown = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown


def _rank(trial: FrozenTrial) -> tuple[float, ...]:
    """How good TPE takes a trial for, lower is better: the complete by their values, before those that were pruned,
    further first."""
    if trial.state == OptunaState.COMPLETE:
        return (-math.inf, trial.values[0])
    step = trial.last_step
    return (1, 0.0) if step is None else (-step, trial.intermediate_values[step])


class _CmaEs(CmaEsSampler):
    """CMA-ES over the numbers that are always open. Optuna would take those that all trials happened to have."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int, startup: int, chance: BaseSampler):
        super().__init__(seed=seed, n_startup_trials=startup, independent_sampler=chance, consider_pruned_trials=True)
        categorical = optuna.distributions.CategoricalDistribution
        self._space = {
            path: each for path, each in space.items() if not each.single() and not isinstance(each, categorical)
        }

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space


class _Qmc(QMCSampler):
    """A scrambled Sobol sequence over all domains that are always open, from the first question on."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int, chance: BaseSampler):
        super().__init__(seed=seed, scramble=True, independent_sampler=chance)
        self._space = {path: each for path, each in space.items() if not each.single()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space
