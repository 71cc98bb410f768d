"""Ray around a sweep: the cluster, the dispatcher's actor and the lanes. Knows neither search nor science."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from raysweep.dispatch import Dispatcher
from raysweep.errors import SweepError
from raysweep.leases import Leases
from raysweep.space import Launch
from raysweep.store import Store

HEARD_S = 30.0  # how long a look at the lanes may take
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's own future default; unset, it warns
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output obeys verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_maximum_startup_concurrency": "16",  # trials are processes that only wait: no reason to warn of many
}


@dataclass
class Lanes:
    """A running dispatcher and the tasks that keep its lanes up."""

    dispatcher: Any
    _tasks: dict[Any, int] = field(default_factory=dict)
    _latest: dict[str, Any] = field(
        default_factory=lambda: {"lanes": [], "computed_steps": 0, "elsewhere": [], "notes": []}
    )

    def snapshot(self, patience_s: float = HEARD_S) -> dict[str, Any]:
        """What the lanes are doing, or were when last heard of; notices those that have ended before their time."""
        self._check()
        with contextlib.suppress(GetTimeoutError):  # on a machine that is busy with other things
            self._latest = ray.get(self.dispatcher.snapshot.remote(), timeout=patience_s)
        return self._latest

    def _check(self) -> None:
        if not self._tasks:
            return
        ended, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for task in ended:
            lane = self._tasks.pop(task)
            try:
                ray.get(task)
                message = "its workers stopped"
            except Exception as error:  # whatever ended it, those who wait must be told
                message = _gist(error)
            ray.get(self.dispatcher.lane_lost.remote(lane, message))

    def close(self, patience_s: float = 20.0) -> None:
        """Let the lanes stop at their next question and wait for them, within bounds."""
        ray.get(self.dispatcher.close.remote(), timeout=patience_s)
        ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=patience_s) if self._tasks else None


@contextlib.contextmanager
def cluster(launch: Launch, address: str) -> Iterator[None]:
    """Ray, connected to `address`, or started on this machine for `local`, and shut down in the end.

    Raises:
        SweepError: there is no cluster at that address.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == "local":
        needed = math.ceil(launch.lanes * launch.workers * launch.cpus_per_worker)
        # One more than the lanes take, for the trials' own processes: fewer cores than workers is slow, not stuck.
        options |= {"num_cpus": max(os.cpu_count() or 1, needed) + 1, "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SweepError(f"no Ray cluster at '{address}': {_gist(error)}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own there, which prints a stack
    try:
        yield
    finally:
        ray.shutdown()


def open_lanes(launch: Launch, storage: str, milestones: list[int], reference: tuple[str, str]) -> Lanes:
    """Start the dispatcher and the lanes; returns at once, while they come up.

    Args:
        reference: the data set and the detector that probes will compare with.

    Raises:
        SweepError: the cluster lacks the resources that one lane needs.
    """
    _check_resources(launch)
    actor = ray.remote(_Shared).options(num_cpus=0, max_concurrency=1000)
    lanes = Lanes(actor.remote(storage, milestones, launch.lanes))
    session = uuid.uuid4().hex[:8]
    for lane in range(launch.lanes):
        name = f"raysweep-{session}-lane{lane}"
        task = _host.remote(lane, storage, launch, lanes.dispatcher, name, reference)
        lanes._tasks[task] = lane
    return lanes


class _Shared(Dispatcher):
    """A dispatcher that shares its store with those of other drivers."""

    def __init__(self, storage: str, milestones: list[int], lanes: int):
        store = Store(storage)
        super().__init__(store, milestones, lanes, Leases(store))


def _check_resources(launch: Launch) -> None:
    have = ray.cluster_resources()
    need = {"CPU": launch.workers * launch.cpus_per_worker, "GPU": launch.workers * launch.gpus_per_worker}
    for name, amount in need.items():
        if amount > have.get(name, 0):
            raise SweepError(
                f"one lane needs {amount:g} {name}s and the cluster has {have.get(name, 0):g}; "
                "use a smaller --profile or --set launch.workers=N"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _host(lane: int, storage: str, launch: Launch, dispatcher: Any, run_name: str, reference: tuple[str, str]) -> None:
    from raysweep import lane as lanes  # brings in torch, which the driver does without

    lanes.fit(lanes.LaneConfig(lane, storage, launch, dispatcher, run_name, reference))


def _gist(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
