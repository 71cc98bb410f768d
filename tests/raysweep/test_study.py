"""A study's decisions and Optuna's view of it, without Ray: rows first, repeats answered, restarts unnoticed."""

import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from raysweep.space import space
from raysweep.store.store import Store
from raysweep.study.journal import Journal
from raysweep.study.proposals import Proposals
from raysweep.study.state import StudyState
from raysweep.tracking.optuna_dashboard import Dashboard

TEXT = """\
study: small
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {choice: [1.0, 15.0, 30.0], default: 30.0}
    weight: {choice: [0.1, 0.5], default: 0.5}
    teacher: {method: {choice: [vae_align, none, repa]}, iterations: 200000}
search: {rungs: [100000, 200000], trials: 9, scheduler: {kind: asha, eta: 2}, startup_trials: 3}
enqueue:
  - {set: {}, fid: 22.91, is: 70.37}
  - {set: {method.guidance_scale: 1.0}, fid: 29.3}
  - {set: {method.teacher.method: repa}}
  - {set: {method.guidance_scale: 30.0}}
"""


class Sweep:
    """A study with its proposals, driven by hand; `metric` says what a probe would."""

    def __init__(self, path: Path, root: Path, *overrides: str):
        self.study = StudyState(
            space.load(path, "smoke", ["trial.encoder.kind=dinov2", *overrides]), Store(str(root / "store"))
        )
        self.storage = f"sqlite:///{root / 'optuna.db'}"
        Dashboard(self.study, self.storage)
        self.proposals = Proposals(self.study)

    def metric(self, trial, step: int) -> float:
        return 100 - step + trial.point["method.guidance_scale"] + 10 * trial.point["method.weight"]

    def carry_out(self, trial, most: int | None = None) -> None:
        for step in self.study.rungs(trial)[:most]:  # like a trial of Tune's, which starts over and reports again
            if trial.ended:
                return
            names = self.study.space.probe.measured
            self.study.probed(trial.number, step, dict(zip(names, (self.metric(trial, step), 1.0), strict=True)))

    def finish(self, trials: int = 1000) -> None:
        for trial in [t for t in self.study.trials if not t.ended and t.repeats is None]:
            self.carry_out(trial)
        while trials and (trial := self.proposals.next()):
            self.carry_out(trial)
            trials -= 1

    def decisions(self):
        return [(t.point, t.state, t.reason, t.probes, t.repeats) for t in self.study.trials]

    def optuna(self) -> optuna.Study:
        return optuna.load_study(study_name=self.study.space.id, storage=self.storage)


@pytest.fixture
def sweep(write_space, tmp_path):
    return lambda where="one", *overrides: Sweep(write_space(TEXT), tmp_path / where, *overrides)


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()


def test_rows_come_first_and_each_has_its_reason(sweep):
    run = sweep()
    run.finish()
    trials = run.study.trials
    assert [trial.row for trial in trials[:4]] == [0, 1, 2, 3]
    assert trials[2].state == "UNAVAILABLE" and "encoder" in trials[2].reason
    assert (trials[3].repeats, trials[3].state, trials[3].probes) == (0, trials[0].state, trials[0].probes)
    assert all(trial.ended and trial.reason for trial in trials)
    pruned = [trial for trial in trials if trial.state == "PRUNED" and trial.repeats is None]
    assert pruned and all("cutoff" in trial.reason for trial in pruned)


def test_proposals_never_train_a_configuration_twice_and_stop_when_all_are_known(sweep):
    run = sweep()
    run.finish()
    points = [repr(sorted(trial.point.items())) for trial in run.study.distinct if trial.state != "UNAVAILABLE"]
    assert len(points) == len(set(points)) == 8  # of 9 asked for, one is the unavailable row
    assert not any(trial.point["method.teacher.method"] == "repa" for trial in run.study.trials if trial.row is None)


def test_the_number_of_trials_bounds_the_rows_too(sweep):
    run = sweep("one", "search.trials=2")
    run.finish()
    assert [trial.row for trial in run.study.trials] == [0, 1]


def test_reproduce_finishes_every_row_and_proposes_nothing_else(sweep):
    run = sweep("one", "search.mode=reproduce")
    run.finish()
    assert [trial.state for trial in run.study.trials] == ["COMPLETE", "COMPLETE", "UNAVAILABLE", "COMPLETE"]


def test_optuna_gets_each_trial_s_end_at_its_training_step(sweep):
    run = sweep()
    run.finish()
    stored = {trial.user_attrs["trial"]: trial for trial in run.optuna().trials if "trial" in trial.user_attrs}
    names = {"COMPLETE": OptunaState.COMPLETE, "PRUNED": OptunaState.PRUNED}
    for trial in run.study.trials:
        if trial.state == "UNAVAILABLE":
            continue
        seen = stored[trial.number]
        assert seen.state == names[trial.state]
        assert seen.intermediate_values == {step: m[run.study.metric] for step, m in trial.probes.items()}
        assert seen.value == trial.last(run.study.metric)


def test_a_nan_fails_and_leaves_no_zombie(sweep):
    run = sweep()
    trial = run.proposals.next()
    run.study.probed(trial.number, 2, {name: math.nan for name in run.study.space.probe.measured})
    assert trial.state == "FAILED" and "nan" in trial.reason
    assert [t.state for t in run.optuna().trials] == [OptunaState.FAIL]


@pytest.mark.parametrize("interrupted_after", [0, 2, 5])
def test_a_restarted_study_decides_what_an_undisturbed_one_would(sweep, interrupted_after):
    whole = sweep("one")
    whole.finish()
    first = sweep("two")
    first.finish(interrupted_after)
    if trial := first.proposals.next():
        first.carry_out(trial, most=1)
    again = sweep("two")
    again.finish()
    assert again.decisions() == whole.decisions()
    assert not any(trial.state == OptunaState.RUNNING for trial in again.optuna().trials)


@pytest.mark.parametrize("share", [0.1, 0.45, 0.75])
def test_any_entry_of_the_journal_may_be_the_last_before_a_crash(sweep, tmp_path, share):
    whole = sweep("one")
    whole.finish()
    entries = whole.study.journal.read()
    for cut in (int(share * len(entries)), int(share * len(entries)) + 1):  # e.g. a probe without its decision
        journal = Journal(Store(str(tmp_path / f"cut-{cut}" / "store")).files, whole.study.space.id)
        for entry in entries[:cut]:
            journal.append(**entry)
        again = sweep(f"cut-{cut}")
        again.finish()
        assert {state for _, state, *_ in again.decisions()} <= {"COMPLETE", "PRUNED", "UNAVAILABLE"}
        assert again.decisions() == whole.decisions()


def test_optuna_trials_without_a_trial_of_ours_are_failed(sweep):
    run = sweep()
    run.optuna().ask()
    run.optuna().enqueue_trial({"method.weight": 0.1})
    again = sweep()
    assert {trial.state for trial in again.optuna().trials} == {OptunaState.FAIL}


def test_a_lost_optuna_study_is_made_again_from_the_journal(sweep, tmp_path):
    run = sweep()
    run.finish(3)
    (tmp_path / "one" / "optuna.db").unlink()
    again = sweep()
    states = {t.user_attrs["trial"]: t.state for t in again.optuna().trials}
    assert [states[t.number].name for t in run.study.trials if t.state != "UNAVAILABLE"] == [
        t.state for t in run.study.trials if t.state != "UNAVAILABLE"
    ]


def test_a_torn_last_batch_of_the_journal_is_dropped(sweep, tmp_path):
    run = sweep()
    run.finish(2)
    last = max((tmp_path / "one" / "store" / "studies").glob("*/journal/*"))
    last.with_name(f"{int(last.name) + 1:08d}").write_bytes(b'{"number": 7, "after')
    assert sweep().decisions() == run.decisions()
    Journal(run.study.store.files, run.study.space.id).append("opened", space={})
    assert Journal(run.study.store.files, run.study.space.id).read()[-1] == {"kind": "opened", "space": {}}


def test_a_study_is_found_by_the_beginning_of_its_name(sweep):
    run = sweep()
    run.finish(2)
    assert StudyState.reopen(run.study.store, "small").space.id == run.study.space.id
    assert [t.state for t in StudyState.reopen(run.study.store, "small").trials] == [t.state for t in run.study.trials]


def test_a_study_of_an_earlier_version_keeps_its_name(sweep, tmp_path):
    run = sweep()
    run.finish()
    written = dict(run.study.space.resolved)
    written["search"] = {key: value for key, value in written["search"].items() if key != "second_objective"}
    earlier = space.Space.reopen(written)
    assert earlier.search == run.study.space.search and earlier.id != run.study.space.id
    store = Store(str(tmp_path / "earlier"))
    for entry in run.study.journal.read():
        facts = {name: value for name, value in entry.items() if name != "kind"}
        if entry["kind"] == "opened":
            facts["space"] = written
        Journal(store.files, earlier.id).append(entry["kind"], **facts)
    again = StudyState.reopen(store, "small")
    assert again.space.id == earlier.id and again.trials == run.study.trials
    assert store.files.names("studies") == [earlier.id]
