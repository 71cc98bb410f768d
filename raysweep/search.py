"""Ray Tune around studies: a searcher that asks them, a scheduler that obeys them. The only module that knows Tune.

A trial of Tune's is a small process without resources. It asks the dispatcher for its run, rung after rung, and reports
what the probes say; the lanes do the work. All state is the studies', so a new driver simply starts a new Tune run.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raysweep.pool import WorkFailed
from raysweep.proposals import Proposals
from raysweep.study import Study, TrialState
from trainables.spec import ProbeSpec, Run

RESTARTS = 2  # of a trial's own small process
SHARE = {"CPU": 0.001}  # of such a process: it only waits, but Tune wants to reserve something


def search(proposals: Sequence[Proposals], dispatcher: Any) -> None:
    """Propose and run the trials of one or several studies until each has all that its space asks for."""
    studies = [each.study for each in proposals]
    with tempfile.TemporaryDirectory() as scratch:  # what Tune writes is nobody's truth
        tune.Tuner(
            tune.with_resources(_trial, SHARE),
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(proposals, dispatcher),
                scheduler=_Scheduler(studies),
                num_samples=-1,
                max_concurrent_trials=max(study.space.launch.concurrent_trials for study in studies),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name=studies[0].space.id,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()


def _trial(config: dict[str, Any]) -> None:
    """One trial: reach each rung, probe, report. It is told to stop by being stopped."""
    run, spec = Run.model_validate_json(config["run"]), ProbeSpec.model_validate_json(config["probe"])
    name, dispatcher = config["name"], config["dispatcher"]
    for step in config["rungs"]:
        try:
            ray.get(dispatcher.reach.remote(run, step, name))
            record = ray.get(dispatcher.probe.remote(run, step, spec, name))
        except WorkFailed as error:
            tune.report({"step": step, "failed": str(error.args[0] if error.args else error)})
            return
        tune.report({"step": step, **record["metrics"]})


class _Unsaved:
    """Tune pickles what it is given, to restore from. We never do: the journal has it all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """The studies' proposals as Tune wants them: those that an earlier driver left unfinished first, then of each study
    in turn."""

    def __init__(self, proposals: Sequence[Proposals], dispatcher: Any):
        super().__init__()
        self._proposals, self._dispatcher = list(proposals), dispatcher
        self._waiting = [
            (number, trial)
            for number, each in enumerate(proposals)
            for trial in each.study.trials
            if not trial.ended and trial.repeats is None
        ]
        self._turns = deque(range(len(self._proposals)))
        self._trials: dict[str, tuple[int, int]] = {}

    def suggest(self, trial_id: str) -> Any:
        found = self._waiting.pop(0) if self._waiting else self._next()
        if found is None:
            return Searcher.FINISHED
        number, trial = found
        study = self._proposals[number].study
        self._trials[trial_id] = (number, trial.number)
        return {
            "study": number,
            "trial": trial.number,
            "name": study.name(trial),
            "run": study.run(trial).model_dump_json(),
            "rungs": study.rungs(trial),
            "probe": study.probe(trial).model_dump_json(),
            "dispatcher": self._dispatcher,
        }

    def _next(self) -> tuple[int, TrialState] | None:
        while self._turns:
            if trial := self._proposals[self._turns[0]].next():
                self._turns.rotate(-1)
                return self._turns[-1], trial
            self._turns.popleft()
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        study, number = self._trials.pop(trial_id)
        if not self._proposals[study].study.trials[number].ended:
            self._proposals[study].study.end(number, "FAILED", "its process died; Ray's logs say why")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `_Unsaved`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `_Unsaved`."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Stops a trial when its study says that it has ended."""

    def __init__(self, studies: Sequence[Study]):
        super().__init__()
        self._studies = studies

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        study, number = self._studies[trial.config["study"]], trial.config["trial"]
        if "failed" in result:
            state = study.end(number, "FAILED", result["failed"])
        else:
            metrics = {name: result[name] for name in study.space.probe.metrics}
            state = study.probed(number, result["step"], metrics)
        return TrialScheduler.STOP if state.ended else TrialScheduler.CONTINUE
