"""Ray Tune around a study: a searcher that asks the study, a scheduler that obeys it. The only module that knows Tune.

A trial of Tune's is a small process without resources. It asks the dispatcher for its run, rung after rung, and reports
what the probes say; the lanes do the work. All state is the study's, so a new driver simply starts a new Tune run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raysweep.dispatch import StretchFailed
from raysweep.proposals import Proposals
from raysweep.study import Study
from trainables.spec import ProbeSpec, Run

RESTARTS = 2  # of a trial's own small process
SHARE = {"CPU": 0.001}  # of such a process: it only waits, but Tune wants to reserve something


def search(study: Study, proposals: Proposals, dispatcher: Any) -> None:
    """Propose and run trials until the study has all that its space asks for."""
    waiting = [trial.number for trial in study.trials if not trial.ended and trial.repeats is None]
    searcher = _Searcher(study, proposals, dispatcher, waiting)
    with tempfile.TemporaryDirectory() as scratch:  # what Tune writes is nobody's truth
        tune.Tuner(
            tune.with_resources(_trial, SHARE),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Scheduler(study),
                num_samples=-1,
                max_concurrent_trials=study.space.launch.concurrent_trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name=study.space.id,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()


def _trial(config: dict[str, Any]) -> None:
    """One trial: reach each rung, probe, report. It is told to stop by being stopped."""
    run, spec = Run.model_validate_json(config["run"]), ProbeSpec.model_validate_json(config["probe"])
    number, dispatcher = config["trial"], config["dispatcher"]
    for step in config["rungs"]:
        try:
            ray.get(dispatcher.reach.remote(run, step, number))
            record = ray.get(dispatcher.probe.remote(run, step, spec, number))
        except StretchFailed as error:
            tune.report({"step": step, "failed": str(error.args[0] if error.args else error)})
            return
        tune.report({"step": step, **record["metrics"]})


class _Unsaved:
    """Tune pickles what it is given, to restore from. We never do: the journal has it all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """The study's proposals as Tune wants them: those that an earlier driver left unfinished first."""

    def __init__(self, study: Study, proposals: Proposals, dispatcher: Any, waiting: Sequence[int]):
        super().__init__()
        self._study, self._proposals, self._dispatcher = study, proposals, dispatcher
        self._waiting = list(waiting)
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self._study.trials[self._waiting.pop(0)] if self._waiting else self._proposals.next()
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {
            "trial": trial.number,
            "run": self._study.run(trial).model_dump_json(),
            "rungs": self._study.rungs(trial),
            "probe": self._study.probe(trial).model_dump_json(),
            "dispatcher": self._dispatcher,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id)
        if not self._study.trials[number].ended:
            self._study.end(number, "FAILED", "its process died; Ray's logs say why")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `_Unsaved`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `_Unsaved`."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Stops a trial when the study says that it has ended."""

    def __init__(self, study: Study):
        super().__init__()
        self._study = study

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        number = trial.config["trial"]
        if "failed" in result:
            state = self._study.end(number, "FAILED", result["failed"])
        else:
            metrics = {name: result[name] for name in self._study.space.probe.metrics}
            state = self._study.probed(number, result["step"], metrics)
        return TrialScheduler.STOP if state.ended else TrialScheduler.CONTINUE
