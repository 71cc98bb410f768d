"""The trials of one or several studies as Ray Tune runs them: one Tune trial per rung task.

A rung task is a trial's training from one rung to the next, and the probe there. Its process asks the dispatcher for
both, waits, and reports the metrics; it holds no GPU. This is the only module that uses Ray Tune.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raysweep.errors import SweepError
from raysweep.execution.actor import call
from raysweep.execution.tasks import ExecutionStopped, RetriesExhausted, TaskFailed
from raysweep.study.ordering import EventOrder, RungTask
from raysweep.study.proposals import Proposals
from trainables.config import ProbeSpec, Run

RESTARTS = 30  # of a rung task's own small process; Ray Tune counts those that it makes, and `_Searcher` the others
# A rung task's process only waits, but Tune must reserve some resource. The head node stays while others come and go.
# No CPU is reserved: a lane might need the last one and would wait for ever.
RESOURCES = {"CPU": 0, "node:__internal_head__": 0.001}


def search(proposals: Sequence[Proposals], actor: Any) -> None:
    """Propose and run the trials of one or several studies until each has all that its space asks for.

    Args:
        actor: the handle of the `DispatcherActor`.

    Raises:
        SweepError: nothing can be trained any more, for a reason that lies outside the trials.
    """
    searcher = _Searcher(proposals, actor)
    # If the process of a rung task dies, Tune restarts it and logs a long traceback, which would not help the user.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:  # what Tune writes is never read: the journal has it all
        tune.Tuner(
            tune.with_resources(_run_rung_task, RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=max(proposal.space.launch.concurrent_trials for proposal in proposals),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name=proposals[0].space.id,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()
    if searcher.stopped:
        raise SweepError(f"{searcher.stopped}; what is finished is kept, and the same command carries on")


def _run_rung_task(config: dict[str, Any]) -> None:
    """Reach the rung and probe: for one trial, or for both trials of a recheck. Reports the metrics of the last probe,
    or the reason why there are none, under `stopped`, `lost` or `failed`."""
    step, name = config["step"], config["name"]
    ask = partial(call, config["actor"], "dispatcher")
    try:
        for run_json, rungs, probe_json in config["probes"]:
            run, spec = Run.model_validate_json(run_json), ProbeSpec.model_validate_json(probe_json)
            ask("reach", run, step, name, rungs)
            record = ask("probe", run, step, spec, name)
    except TaskFailed as error:
        kinds = {ExecutionStopped: "stopped", RetriesExhausted: "lost"}
        kind = next((kind for cause, kind in kinds.items() if isinstance(error, cause)), "failed")
        tune.report({kind: str(error.args[0] if error.args else error)})
    else:
        tune.report(record.metrics)


class _Searcher(Searcher):
    """Gives Tune the rung tasks of the studies, taking turns between the studies."""

    def __init__(self, proposals: Sequence[Proposals], actor: Any):
        super().__init__()
        self.stopped = ""  # why nothing can be trained any more
        self._actor = actor
        self._orders = deque(
            EventOrder(proposal.study, proposal.next, proposal.space.launch.concurrent_trials) for proposal in proposals
        )
        self._rung_tasks: dict[str, tuple[EventOrder, RungTask]] = {}  # by Tune's id of the trial
        self._again: deque[tuple[EventOrder, RungTask]] = deque()  # to be given to Tune again
        self._restarts: Counter[tuple[EventOrder, RungTask]] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher to restore from it. We restore from the journal.

    def suggest(self, trial_id: str) -> Any:
        if self.stopped:
            return Searcher.FINISHED
        if self._again:
            self._rung_tasks[trial_id] = self._again.popleft()
            return self._config(*self._rung_tasks[trial_id])
        for _ in self._orders:
            order = self._orders[0]
            self._orders.rotate(-1)
            if rung_task := order.next():
                self._rung_tasks[trial_id] = (order, rung_task)
                return self._config(order, rung_task)
        return Searcher.FINISHED if all(order.finished for order in self._orders) else None

    def _config(self, order: EventOrder, rung_task: RungTask) -> dict[str, Any]:
        study = order.study
        probed = [study.trials[number] for number in rung_task.trials]
        return {
            "name": study.name(probed[0]),
            "step": rung_task.step,
            "probes": [
                (
                    study.run(trial).model_dump_json(),
                    study.rungs(trial),
                    study.probe(trial, rung_task.recheck).model_dump_json(),
                )
                for trial in probed
            ],
            "actor": self._actor,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        order, rung_task = self._rung_tasks.pop(trial_id)
        if error or result is None:
            self._restart(order, rung_task)
        elif "stopped" in result:
            self.stopped = result["stopped"]
        elif "failed" in result or "lost" in result:
            order.failed(rung_task, result.get("failed") or result["lost"], again="lost" in result)
        else:
            order.probed(rung_task, {name: result[name] for name in order.study.space.probe.reported if name in result})

    def _restart(self, order: EventOrder, rung_task: RungTask) -> None:
        """Have a rung task run again whose process has died. Tune does so itself, unless the process dies while it is
        being prepared for another rung task."""
        self._restarts[order, rung_task] += 1
        if self._restarts[order, rung_task] <= RESTARTS:
            self._again.append((order, rung_task))
        else:
            order.failed(rung_task, "its process died too often; Ray's logs say why", again=True)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see `__getstate__`."""
