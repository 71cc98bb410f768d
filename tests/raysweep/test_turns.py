"""What an exploration decides does not depend on who is fast, how many lanes there are, or when a driver dies."""

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep import space
from raysweep.proposals import Proposals
from raysweep.simulation import MemoryStore
from raysweep.study import Study
from raysweep.turns import Leg, Turns

TEXT = """\
study: turns
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {uniform: [1.0, 60.0], default: 30.0}
    weight: {choice: [0.1, 0.5], default: 0.5}
    teacher: {method: {choice: [vae_align, none]}, iterations: 200000}
search: {mode: MODE, rungs: [100000, 200000], trials: 7, eta: 2, startup_trials: 3}
enqueue:
  - {set: {}}
  - {set: {method.guidance_scale: 1.0}}
  - {set: {method.guidance_scale: 30.0}}
  - {set: {method.weight: 0.1}}
"""


def loaded(tmp_path_factory, mode: str = "explore") -> space.Space:
    path = tmp_path_factory.mktemp("turns") / "space.yaml"
    path.write_text(TEXT.replace("MODE", mode))
    return space.load(path, "smoke")


def measured(study: Study, leg: Leg) -> dict[str, float]:
    """What a probe would say; the second trial is not finite."""
    number, step = leg.trial, leg.step
    value = float("nan") if (number, step) == (1, 2) else random.Random(f"{number}").uniform(0, 100) / step
    return dict.fromkeys(study.space.probe.measured, value)


def sweep(whole: space.Space, pick: Callable[[int], int], places: int = 3, dies_after: int = 0) -> Study:
    """A sweep in which `pick(n)` says which of n legs under way ends next, and whose driver dies after so many."""
    store = MemoryStore()
    while True:
        study = Study(whole, store)
        turns, away, told = Turns(study, Proposals(study, None).next, places), [], 0
        while not turns.finished and (not dies_after or told < dies_after):
            while leg := turns.next():
                away.append(leg)
            if away:
                leg = away.pop(pick(len(away)) % len(away))
                turns.probed(leg, measured(study, leg))
                told += 1
        if turns.finished:
            return study
        dies_after = 0  # the next driver lives


def decided(study: Study) -> list:
    return [(t.point, t.state, t.reason, t.probes, t.decisions, t.at) for t in study.trials]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), dies_after=st.integers(0, 14))
def test_the_course_of_an_exploration_is_its_space_s(tmp_path_factory, seed, dies_after):
    whole = loaded(tmp_path_factory)
    chance = random.Random(seed)
    one = sweep(whole, lambda count: 0)
    other = sweep(whole, chance.randrange, dies_after=dies_after)
    assert decided(other) == decided(one)
    assert [entry["kind"] for entry in other.journal.read()] == [entry["kind"] for entry in one.journal.read()]
    assert {trial.state for trial in one.trials} == {"COMPLETE", "PRUNED", "FAILED"}


def test_a_reproduction_hears_of_whoever_comes_first(tmp_path_factory):
    study = sweep(loaded(tmp_path_factory, "reproduce"), lambda count: count - 1)
    ended = [entry["trial"] for entry in study.journal.read() if entry["kind"] == "ended"]
    assert ended != sorted(ended) and study.trials[0].state == study.trials[3].state == "COMPLETE"


def test_what_failed_for_no_fault_of_its_own_is_tried_again_by_the_next_driver(tmp_path_factory):
    whole, store = loaded(tmp_path_factory, "reproduce"), MemoryStore()
    study = Study(whole, store)
    turns = Turns(study, Proposals(study, None).next, 3)
    lost, broken = turns.next(), turns.next()
    turns.failed(lost, "workers died 5 times", again=True)
    turns.failed(broken, "not finite at step 3")
    states = [trial.state for trial in study.trials]
    assert states[:2] == ["FAILED", "FAILED"] and states[2] == "FAILED"  # the third repeats the first
    again = Study(whole, store)
    assert [trial.number for trial in again.retry()] == [lost.trial]
    assert [trial.state for trial in again.trials[:3]] == ["RUNNING", "FAILED", "RUNNING"]
    assert Turns(again, Proposals(again, None).next, 3).next() == lost
