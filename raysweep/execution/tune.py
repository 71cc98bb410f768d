"""Ray Tune around studies: a searcher that gives out their legs and is told how they ended. The only module that knows
Tune.

A trial of Tune's is one leg of one of ours: a small process without resources that asks the dispatcher for a run at a
rung, then for its probe, and reports it; the lanes do the work. All state is the studies', so a new driver simply
starts a new Tune run, and a trial that waits at a rung holds nothing.
"""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raysweep.errors import SweepError
from raysweep.execution.lanes import ask
from raysweep.execution.tasks import ExecutionStopped, RetriesExhausted, TaskFailed
from raysweep.study.ordering import EventOrder, RungTask
from raysweep.study.proposals import Proposals
from trainables.config import ProbeSpec, Run

RESTARTS = 30  # of a leg's own small process
# Of such a process: it only waits, but Tune wants to reserve something. The head survives the nodes that come and go,
# and takes no CPU from workers: a lane could wait for the last of it for ever.
SHARE = {"CPU": 0, "node:__internal_head__": 0.001}


def search(proposals: Sequence[Proposals], dispatcher: Any) -> None:
    """Propose and run the trials of one or several studies until each has all that its space asks for.

    Raises:
        SweepError: nothing can be trained any more, through no fault of the trials'.
    """
    searcher = _Searcher(proposals, dispatcher)
    # A leg whose process dies starts anew, which is no reason for a page of Tune's own calls.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:  # what Tune writes is nobody's truth
        tune.Tuner(
            tune.with_resources(_run_rung_task, SHARE),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=max(each.space.launch.concurrent_trials for each in proposals),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name=proposals[0].space.id,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()
    if searcher.halted:
        raise SweepError(f"{searcher.halted}; what is finished is kept, and the same command carries on")


def _run_rung_task(config: dict[str, Any]) -> None:
    """One leg: reach the rung, probe, report; of a trial, or of two that are compared."""
    step, name = config["step"], config["name"]
    try:
        for run, probe in config["probes"]:
            run, spec = Run.model_validate_json(run), ProbeSpec.model_validate_json(probe)
            ask(config["dispatcher"], "reach", run, step, name)
            record = ask(config["dispatcher"], "probe", run, step, spec, name)
    except TaskFailed as error:
        kind = (
            "halted"
            if isinstance(error, ExecutionStopped)
            else "lost"
            if isinstance(error, RetriesExhausted)
            else "failed"
        )
        tune.report({kind: str(error.args[0] if error.args else error)})
    else:
        tune.report(record["metrics"])


class _Searcher(Searcher):
    """The studies' legs as Tune wants them, of each study in turn."""

    def __init__(self, proposals: Sequence[Proposals], dispatcher: Any):
        super().__init__()
        self.halted = ""
        self._dispatcher = dispatcher
        self._orders = deque(
            EventOrder(each.study, each.next, each.space.launch.concurrent_trials) for each in proposals
        )
        self._rung_tasks: dict[str, tuple[EventOrder, RungTask]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given, to restore from. We never do: the journal has it all.

    def suggest(self, trial_id: str) -> Any:
        if self.halted:
            return Searcher.FINISHED
        for _ in self._orders:
            order = self._orders[0]
            self._orders.rotate(-1)
            if rung_task := order.next():
                self._rung_tasks[trial_id] = (order, rung_task)
                return self._config(order, rung_task)
        return Searcher.FINISHED if all(order.finished for order in self._orders) else None

    def _config(self, order: EventOrder, rung_task: RungTask) -> dict[str, Any]:
        study = order.study
        probed = [
            study.trials[number]
            for number in (rung_task.trial, *([rung_task.recheck.rival] if rung_task.recheck else []))
        ]
        runs = [
            (study.run(trial).model_dump_json(), study.probe(trial, rung_task.recheck).model_dump_json())
            for trial in probed
        ]
        return {
            "name": study.name(probed[0]),
            "step": rung_task.step,
            "probes": runs,
            "dispatcher": self._dispatcher,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        order, rung_task = self._rung_tasks.pop(trial_id)
        if error or result is None:
            order.failed(rung_task, "its process died too often; Ray's logs say why", again=True)
        elif "halted" in result:
            self.halted = result["halted"]
        elif "failed" in result or "lost" in result:
            order.failed(rung_task, result.get("failed") or result["lost"], again="lost" in result)
        else:
            order.probed(rung_task, {name: result[name] for name in order.study.space.probe.reported if name in result})

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""
