"""A simulated sweep costs what its plan says, writes a study's journal, and is deterministic."""

import pytest

from raysweep.planning.learning_curves import Recorded, Synthetic
from raysweep.planning.plan import Plan
from raysweep.planning.simulation import simulate, trust_names
from raysweep.space import space
from raysweep.space.configurations import configurations
from raysweep.study.state import StudyState
from trainables.datasets import catalog

SPACE = """\
study: simulated
trial:
  method:
    kind: self_guided
    guidance_scale: {uniform: [1.0, 60.0], default: 30.0}
    stop: {choice: [50000, 100000, never], default: 100000}
    teacher: {method: {choice: [vae_align, none]}, iterations: {choice: [100000, 200000], default: 200000}}
search: {rungs: [50000, 100000, 200000], trials: 40, scheduler: {kind: asha, eta: 3}}
"""


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setattr(catalog, "TRUSTED", {})
    trust_names()


@pytest.fixture
def loaded(write_space) -> space.Space:
    return space.load(write_space(SPACE))


def test_a_grid_costs_what_its_plan_says(write_space):
    reproduced = space.load(write_space(SPACE), overrides=["search.mode=reproduce", "enqueue=[{set: {}}]"])
    every = list(configurations(space.load(write_space(SPACE)), []))
    for sharing in (True, False):
        outcome = simulate(reproduced, every, Synthetic(), lanes=4, sharing=sharing)
        assert len(outcome.complete) == len(every) == 40
        plan = Plan([space.load(write_space(SPACE))])
        expected = plan.grid.together if sharing else plan.grid.apart
        assert outcome.steps == expected.steps
        assert outcome.gpu_hours == pytest.approx(expected.gpu_hours)


def test_more_lanes_take_less_time_until_the_critical_path_is_left(loaded):
    every = list(configurations(loaded, []))
    hours = [simulate(loaded, every, Synthetic(noise=0), lanes=lanes).hours for lanes in (1, 4, 400)]
    assert hours[0] > 2 * hours[1] > 2 * hours[2]
    # The first trial is trained to its end after its teacher, at the paper's plain steps/s on a lane of eight GPUs.
    assert hours[2] * 3600 >= (400_000 + 100_000) / 9.28


def test_a_simulation_is_deterministic(loaded):
    every = list(configurations(loaded, []))
    one, other = (simulate(loaded, every, Synthetic(seed=3), lanes=3) for _ in range(2))
    assert (one.hours, one.steps, one.best) == (other.hours, other.steps, other.best)
    assert [t.decisions for t in one.study.trials] == [t.decisions for t in other.study.trials]


def test_a_simulation_s_journal_is_a_study_s(loaded):
    outcome = simulate(loaded, list(configurations(loaded, [])), Synthetic(), lanes=3)
    again = StudyState(loaded, outcome.study.store)
    assert again.trials == outcome.study.trials and again.finished
    assert {trial.state for trial in again.trials} == {"COMPLETE", "PRUNED"}


def test_recorded_curves_are_replayed_and_go_on_as_the_others_did(loaded):
    every = list(configurations(loaded, []))
    first = simulate(loaded, every, Synthetic(seed=1), lanes=3)
    recorded = Recorded.of(first.study)
    second = simulate(loaded, every, recorded, lanes=3)
    assert second.study.trials == first.study.trials
    pruned = next(trial for trial in first.study.trials if trial.state == "PRUNED")
    chosen = every[pruned.number]
    assert recorded(chosen, 400_000) < pruned.last(first.study.metric)  # the other trials improved after that step too
