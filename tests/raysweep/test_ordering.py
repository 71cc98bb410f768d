"""What an exploration decides does not depend on who is fast, how many lanes there are, or when a driver dies."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.planning.simulation import MemoryStore
from raysweep.space import space
from raysweep.study.ordering import EventOrder, RungTask
from raysweep.study.proposals import Proposals
from raysweep.study.rungs import Difference, Recheck
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState

TEXT = """\
study: turns
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {uniform: [1.0, 60.0], default: 30.0}
    weight: {choice: [0.1, 0.5], default: 0.5}
    teacher: {method: {choice: [vae_align, none]}, iterations: 200000}
search: {mode: MODE, rungs: [100000, 200000], trials: 7, scheduler: SCHEDULER, startup_trials: 3}
enqueue:
  - {set: {}}
  - {set: {method.guidance_scale: 1.0}}
  - {set: {method.guidance_scale: 30.0}}
  - {set: {method.weight: 0.1}}
"""


SCHEDULERS = ["asha", "{kind: asha, noise: paired}", "{kind: median, noise: paired, startup_trials: 2}"]
SCHEDULERS += ["hyperband", "promotion", "never"]


class Compared(StudyState):
    """A study whose probes are compared by a rule: those of odd trials are noisy, until there are more samples."""

    def difference(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        gap = trial.probes[step][self.metric] - rival.probes[step][self.metric]
        return Difference(gap, 100.0 if trial.number % 2 and recheck is None else abs(gap) / (trial.number + 1))


def loaded(tmp_path_factory, mode: str = "explore", scheduler: str = "asha") -> space.Space:
    path = tmp_path_factory.mktemp("turns") / "space.yaml"
    path.write_text(TEXT.replace("MODE", mode).replace("SCHEDULER", scheduler))
    return space.load(path, "smoke")


def measured(study: StudyState, rung_task: RungTask) -> dict[str, float]:
    """What a probe would say; the second trial is not finite."""
    number, step = rung_task.trial, rung_task.step
    value = float("nan") if (number, step) == (1, 2) else random.Random(f"{number}").uniform(0, 100) / step
    return dict.fromkeys(study.space.probe.measured, value)


def sweep(whole: space.Space, pick: Callable[[int], int], places: int = 3, dies_after: int = 0) -> StudyState:
    """A sweep in which `pick(n)` says which of n running rung tasks ends next; the driver dies after so many."""
    store = MemoryStore()
    while True:
        study = Compared(whole, store)
        order, away, probes = EventOrder(study, Proposals(study).next, places), [], 0
        while not order.finished and (not dies_after or probes < dies_after):
            while rung_task := order.next():
                away.append(rung_task)
            if away:
                rung_task = away.pop(pick(len(away)) % len(away))
                order.probed(rung_task, measured(study, rung_task))
                probes += 1
        if order.finished:
            return study
        dies_after = 0  # the next driver lives


def decided(study: StudyState) -> list:
    return [(t.point, t.state, t.reason, t.probes, t.decisions, t.at) for t in study.trials]


@settings(max_examples=40)
@given(scheduler=st.sampled_from(SCHEDULERS), seed=st.integers(0, 10**6), dies_after=st.integers(0, 16))
def test_the_course_of_an_exploration_is_its_space_s(tmp_path_factory, scheduler, seed, dies_after):
    whole = loaded(tmp_path_factory, scheduler=scheduler)
    chance = random.Random(seed)
    one = sweep(whole, lambda count: 0)
    other = sweep(whole, chance.randrange, dies_after=dies_after)
    assert decided(other) == decided(one)
    assert [entry["kind"] for entry in other.journal.read()] == [entry["kind"] for entry in one.journal.read()]
    assert other.finished and one.best


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_prune_as_they_should(tmp_path_factory, scheduler):
    study = sweep(loaded(tmp_path_factory, scheduler=scheduler), lambda count: 0)
    states = [trial.state for trial in study.distinct]
    assert states.count("FAILED") == (scheduler != "hyperband") and "COMPLETE" in states  # one bracket passes that rung
    assert ("PRUNED" in states) == (scheduler != "never")
    kinds = {entry["kind"] for entry in study.journal.read()}
    assert ("doubted" in kinds) == ("paired" in scheduler) and ("promoted" in kinds) == (scheduler == "promotion")
    for trial in study.distinct:
        assert all(decision.go_on for step, decision in trial.decisions.items() if step < trial.step)
        if trial.state == "PRUNED" and "paired" in scheduler:
            decision = trial.decisions[trial.step]
            assert decision.difference > 1.6 * decision.error and f"± {decision.error:.2g}" in trial.reason


def test_a_recheck_probes_both_trials_with_more_samples(tmp_path_factory):
    whole = loaded(tmp_path_factory, scheduler="{kind: asha, noise: paired, larger: 3}")
    study = Compared(whole, MemoryStore())
    order, value = EventOrder(study, Proposals(study).next, 7), 1.0
    while not (rung_task := order.next()).recheck:
        order.probed(rung_task, dict.fromkeys(whole.probe.reported, value := value + 1))
    trial = study.trials[rung_task.trial]
    assert (
        trial.number % 2
        and rung_task.trials == [trial.number, rung_task.recheck.rival]
        and rung_task.step == trial.step
    )
    assert study.probe(trial, rung_task.recheck).samples == 3 * whole.probe.samples
    again = EventOrder(Compared(whole, study.store), Proposals(study).next, 7)  # the next driver is in the same doubt
    assert again.next() == rung_task
    order.probed(rung_task, {})
    assert trial.state == "PRUNED" and trial.decisions[trial.step].samples == 3 * whole.probe.samples


def test_a_reproduction_receives_results_in_order_of_arrival(tmp_path_factory):
    study = sweep(loaded(tmp_path_factory, "reproduce"), lambda count: count - 1)
    ended = [entry["trial"] for entry in study.journal.read() if entry["kind"] == "ended"]
    assert ended != sorted(ended) and study.trials[0].state == study.trials[3].state == "COMPLETE"


def test_what_failed_for_no_fault_of_its_own_is_tried_again_by_the_next_driver(tmp_path_factory):
    whole, store = loaded(tmp_path_factory, "reproduce"), MemoryStore()
    study = StudyState(whole, store)
    order = EventOrder(study, Proposals(study).next, 3)
    lost, broken = order.next(), order.next()
    order.failed(lost, "workers died 5 times", again=True)
    order.failed(broken, "not finite at step 3")
    states = [trial.state for trial in study.trials]
    assert states[:2] == ["FAILED", "FAILED"] and states[2] == "FAILED"  # the third repeats the first
    again = StudyState(whole, store)
    assert [trial.number for trial in again.retry()] == [lost.trial]
    assert [trial.state for trial in again.trials[:3]] == ["RUNNING", "FAILED", "RUNNING"]
    assert EventOrder(again, Proposals(again).next, 3).next() == lost
