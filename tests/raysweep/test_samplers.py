"""Samplers by name: what each proposes, from the journal alone, never twice, and in which spaces it is refused."""

import random
from pathlib import Path
from statistics import median
from typing import get_args

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState as OptunaState

from raysweep.commands.run import main
from raysweep.errors import UserError
from raysweep.planning.simulation import MemoryStore
from raysweep.space import domains, space
from raysweep.space.sampler_rules import Sampler
from raysweep.study import samplers
from raysweep.study.ordering import EventOrder
from raysweep.study.proposals import Proposals
from raysweep.study.samplers import Recall
from raysweep.study.state import StudyState
from raysweep.study.summary import fronts, summarize_trial
from raysweep.study.trial import TrialState
from raysweep.tracking.optuna_dashboard import Dashboard

SAMPLERS = get_args(Sampler)
LEARNERS = ("tpe", "gp", "cmaes")

RANGES = """\
study: ranges
trial:
  iterations: 400000
  method:
    choice:
      - kind: self_guided
        guidance_scale: {log_uniform: [1.0, 60.0]}
        weight: {choice: [0.5, 0.1, 0.3]}
        teacher: {method: {choice: [vae_align, none]}, iterations: 200000}
      - {kind: layersync, weight: {choice: [0.5, 0.1, 0.3]}}
  optimizer: {lr: {log_uniform: [0.0001, 0.01]}, beta2: {choice: [0.999, 0.9, 0.95]}, grad_clip: {integers: [1, 4]}}
search: {rungs: [100000, 200000], trials: 16, scheduler: {kind: asha, eta: 2}, startup_trials: 3}
enqueue:
  - {set: {}}
  - {set: {optimizer.grad_clip: 4}}
"""
CHOICES = """\
study: choices
trial:
  iterations: 400000
  method:
    choice:
      - {kind: none}
      - {kind: vae_align, weight: {choice: [0.5, 0.1]}, stop: {choice: [100000, never]}}
  optimizer: {grad_clip: {integers: [1, 3]}}
search: {rungs: [100000], trials: 100, startup_trials: 3}
"""
SIZE = (1 + 2 * 2) * 3
NUMBERS = """\
study: numbers
trial:
  iterations: 400000
  ema_decay: {choice: [0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5]}
  label_dropout: {choice: [0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5]}
  optimizer: {lr: {log_uniform: [0.0001, 0.01]}}
search: {rungs: [], trials: 40, startup_trials: 5}
"""


@pytest.fixture
def study_of(write_space):
    """A study of a text, in a store that later drivers may be given too."""

    def make(text: str, sampler: str, *overrides: str, store: MemoryStore | None = None) -> StudyState:
        loaded = space.load(write_space(text), "smoke", [f"search.sampler={sampler}", *overrides])
        return StudyState(loaded, store or MemoryStore())

    return make


def fits(text: str, sampler: str) -> str:
    """The text, with a grid of its own where the sampler is one."""
    numbers = {"log_uniform: [1.0, 60.0]": "choice: [1.0, 9.0, 60.0]", "log_uniform: [0.0001, 0.01]": "choice: [0.01]"}
    for old, new in numbers.items():
        text = text.replace(old, new) if sampler == "grid" else text
    return text


def measure(study: StudyState, trial: TrialState, value: float) -> dict[str, float]:
    """A probe's metrics; every fifth trial is not finite."""
    return dict.fromkeys(study.space.probe.measured, float("nan") if trial.number % 5 == 3 else value)


def chance(trial: TrialState) -> float:
    return random.Random(str(sorted(trial.point.items(), key=str))).uniform(0, 100)


def drive(study: StudyState, events: int | None = None) -> bool:
    """Carry on a study with four trials under way until it has ended, or until so many probes; whether it has."""
    order, probes = EventOrder(study, Proposals(study).next, 4), 0
    while not order.finished:
        away = []
        while rung_task := order.next():
            away.append(rung_task)
        for rung_task in reversed(away):  # who is asked last answers first
            trial = study.trials[rung_task.trial]
            order.probed(rung_task, measure(study, trial, chance(trial) / rung_task.step))
            probes += 1
            if probes == events:
                return order.finished
    return True


def course(study: StudyState) -> list[tuple[object, ...]]:
    return [(trial.point, trial.state, trial.reason, trial.probes, trial.at) for trial in study.trials]


@pytest.mark.parametrize(
    ("text", "sampler"),
    [(RANGES, sampler) for sampler in SAMPLERS]
    + [(CHOICES, sampler) for sampler in SAMPLERS if sampler != "gp"],  # seconds a question
    ids=lambda value: value.split()[1] if " " in value else value,
)
def test_a_study_whose_driver_dies_again_and_again_proposes_what_an_undisturbed_one_would(study_of, text, sampler):
    text = fits(text, sampler)
    if sampler != "gp":
        text = text.replace("trials: 16", "trials: 32")  # so that CMA-ES has come to its second generation
    whole = study_of(text, sampler)
    assert drive(whole)
    store = MemoryStore()
    while not drive(study_of(text, sampler, store=store), events=5):
        pass
    assert course(study_of(text, sampler, store=store)) == course(whole)
    assert {"COMPLETE", "PRUNED", "FAILED"} <= {trial.state for trial in whole.trials}


def test_of_many_trials_tpe_sees_those_under_way_the_best_and_some(study_of, monkeypatch):
    text, made = NUMBERS.replace("trials: 40", "trials: 150").replace("rungs: []", "rungs: [100000, 200000]"), []

    class Kept(Recall):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(samplers, "Recall", Kept)
    monkeypatch.setattr(samplers, "MOST", 40)
    whole, store = study_of(text, "tpe"), MemoryStore()
    drive(whole, events=200)
    (storage,) = made
    dashboard = optuna.load_study(study_name=whole.space.id, storage=storage)
    everything = InMemoryStorage.get_all_trials(storage, dashboard._study_id)
    seen = dashboard.get_trials()
    ended = [trial for trial in everything if trial.state in (OptunaState.COMPLETE, OptunaState.PRUNED)]
    numbers = [trial.number for trial in seen]
    assert 65 < len(ended) < len(everything) and len(seen) <= 40 + 25 + 4 and numbers == sorted(set(numbers))
    assert {trial.number for trial in everything if trial.state == OptunaState.RUNNING} <= set(numbers)
    ended_and_seen = [trial for trial in seen if trial in ended]
    best, known = (_split_trials(dashboard, trials, 25)[0] for trials in (ended, ended_and_seen))
    assert [trial.number for trial in best] == [trial.number for trial in known]

    drive(whole)
    while not drive(study_of(text, "tpe", store=store), events=60):
        pass
    assert course(study_of(text, "tpe", store=store)) == course(whole)


@pytest.mark.parametrize("second", ["steps", "is"])
def test_two_objectives_are_weighed_and_their_front_is_optuna_s(study_of, tmp_path, second):
    def made(storage: str | None = None, **more) -> StudyState:
        return study_of(RANGES.replace("trials: 16", "trials: 24"), "tpe", f"search.second_objective={second}", **more)

    whole, store = made(), MemoryStore()
    assert drive(whole)
    while not drive(made(store=store), events=7):
        pass
    assert course(made(store=store)) == course(whole)
    alone = study_of(RANGES.replace("trials: 16", "trials: 24"), "tpe")
    drive(alone)
    assert [trial.point for trial in alone.trials] != [trial.point for trial in whole.trials]

    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    Dashboard(whole, storage)
    dashboard = optuna.load_study(study_name=whole.space.id, storage=storage)
    if second == "steps":  # of `is`, Optuna hears from complete trials alone
        front = fronts(whole, [summarize_trial(whole, trial) for trial in whole.trials])["steps"].members
        assert sorted({trial.user_attrs["trial"] for trial in dashboard.best_trials}) == front
    assert {trial.state for trial in dashboard.trials} == {OptunaState.COMPLETE, OptunaState.FAIL}


def test_each_sampler_has_proposals_of_its_own(study_of):
    proposed = {}
    for sampler in SAMPLERS:
        study = study_of(fits(RANGES, sampler), sampler)
        drive(study)
        proposed[sampler] = str([trial.point for trial in study.trials])
    assert len(set(proposed.values())) == len(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_space_is_exhausted_and_nothing_in_it_comes_twice(study_of, sampler):
    study = study_of(CHOICES, sampler, f"search.startup_trials={8 if sampler == 'gp' else 3}")
    drive(study)
    assert len(study.trials) == SIZE == len({domains.point_key(trial.point) for trial in study.trials})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_database_holds_what_was_proposed_and_nothing_else(study_of, sampler, tmp_path):
    study, storage = study_of(CHOICES, sampler), f"sqlite:///{tmp_path / 'optuna.db'}"
    Dashboard(study, storage)
    proposals = Proposals(study)
    while (trial := proposals.next()) and trial.number < SIZE - 1:
        study.fail(trial.number, "of no use")
    stored = optuna.load_study(study_name=study.space.id, storage=storage).trials
    assert [trial.state for trial in stored] == (SIZE - 1) * [OptunaState.FAIL] + [OptunaState.RUNNING]
    labels = [{path: domains.label(value) for path, value in trial.point.items()} for trial in study.trials]
    assert [trial.params for trial in stored] == labels


def test_a_grid_goes_through_the_file_in_its_order(study_of):
    study = study_of(CHOICES, "grid")
    drive(study)
    clips = [trial.point["optimizer.grad_clip"] for trial in study.trials]
    kinds = [trial.point["method"]["kind"] for trial in study.trials]
    assert kinds == ["none"] * 3 + ["vae_align"] * 12
    assert clips[:3] == [1, 2, 3]
    assert [list(trial.point.values())[1:] for trial in study.trials[3:8]] == [
        [1, 0.5, 100000], [1, 0.5, "never"], [1, 0.1, 100000], [1, 0.1, "never"], [2, 0.5, 100000],
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", LEARNERS)
def test_samplers_that_learn_find_better_points_than_chance(study_of, sampler):
    def late(name: str) -> float:
        study = study_of(NUMBERS, name, "search.seed=3")
        proposals, values = Proposals(study), []
        while trial := proposals.next():
            point = trial.point
            values.append(1 + abs(point["ema_decay"] - 0.7) + abs(point["label_dropout"] - 0.3))
            study.probed(trial.number, study.next_rung(trial), dict.fromkeys(study.space.probe.measured, values[-1]))
        return median(values[-15:])

    assert late(sampler) < late("random")


@pytest.mark.parametrize(
    ("text", "sampler", "said"),
    [
        (RANGES, "grid", "trial.method.guidance_scale: a grid cannot hold every number of a log_uniform; "),
        (NUMBERS, "grid", "trial.optimizer.lr: a grid cannot"),
        (CHOICES.replace("{integers: [1, 3]}", "1.0"), "cmaes", "--set search.sampler: cmaes needs a numeric domain"),
        (CHOICES, "annealing", "--set search.sampler: input should be 'tpe', 'gp', 'cmaes', 'qmc', 'random' or 'grid'"),
    ],
)
def test_a_sampler_that_cannot_is_refused_before_anything_is_written(write_space, tmp_path, text, sampler, said):
    path = write_space(text)
    with pytest.raises(UserError) as refused:
        space.load(path, "smoke", [f"search.sampler={sampler}"])
    assert said in str(refused.value) and "\n" not in str(refused.value)
    command = [
        str(path),
        "--profile",
        "smoke",
        "--set",
        f"search.sampler={sampler}",
        "--storage",
        str(tmp_path / "runs"),
    ]
    assert main(command) == 2 and not Path(tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [("sampler=cmaes", "cmaes optimizes a single objective"), ("second_objective=is", "IS is not among probe.metrics")],
)
def test_a_second_objective_that_cannot_be_weighed_is_refused(write_space, override, said):
    overrides = ["search.second_objective=steps", f"search.{override}", "probe.metrics=[fid]"]
    with pytest.raises(UserError, match=said):
        space.load(write_space(RANGES), "smoke", overrides)


def test_a_reproduction_asks_no_sampler_and_none_is_refused(write_space):
    loaded = space.load(write_space(RANGES), "smoke", ["search.sampler=grid", "search.mode=reproduce"])
    assert (loaded.search.sampler, loaded.search.mode) == ("grid", "reproduce")
