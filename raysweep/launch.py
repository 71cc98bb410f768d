"""Ray around a sweep: the cluster, the dispatcher's actor and the lanes. Knows neither search nor science."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.dispatch import Dispatcher
from raysweep.errors import SweepError
from raysweep.leases import Leases
from raysweep.space import Launch
from raysweep.store import Store
from trainables.spec import ProbeSpec

HEARD_S = 30.0  # how long a look at the lanes may take
ASKS = 60  # of a dispatcher that died and starts anew, a second apart
REST_S = 3.0  # before a lane starts again: until then what was left of it may still ask for a placement group
STARTS = 5  # of a lane that finishes nothing in between
Reference = tuple[str, ProbeSpec]  # a data set, and a probe of it
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's own future default; unset, it warns
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output obeys verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that tells workers what ours do not ask for
    "RAY_worker_maximum_startup_concurrency": "16",  # trials are processes that only wait: no reason to warn of many
}


class Lanes:
    """A dispatcher and the lanes that work for it, each started again when it ends before its time.

    Args:
        reference: the data set and the probe that will compare with it.
        alone: whether the cluster is this driver's own.

    Raises:
        SweepError: the cluster lacks the resources that one lane needs.
    """

    def __init__(self, launch: Launch, store: Store, milestones: list[int], reference: Reference, alone: bool):
        _check_resources(launch)
        self._launch, self._store, self._reference, self._alone = launch, store, reference, alone
        self._session = uuid.uuid4().hex[:12]
        # What controls the lanes stays where the driver is: it is of no use without it.
        self._here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(_Shared).options(
            num_cpus=0, max_concurrency=1000, max_restarts=-1, scheduling_strategy=self._here
        )
        self.dispatcher = actor.remote(store.uri, store.mark, milestones, launch, self._session)
        self._tasks: dict[Any, int] = {}
        self._starts: Counter[int] = Counter()  # of a lane, since it last finished something
        self._began: dict[int, float] = {}
        self._served: dict[int, int] = {}
        self._groups: dict[int, str] = {}  # of the lanes whose workers have come up
        self._cleared: set[str] = set()
        self._resting: dict[int, float] = {}  # lanes that have ended -> when
        self._latest: dict[str, Any] = {"lanes": [], "computed_steps": 0, "elsewhere": [], "notes": []}
        for lane in range(launch.lanes):
            self._start(lane)

    def snapshot(self, patience_s: float = HEARD_S) -> dict[str, Any]:
        """What the lanes are doing, or were when last heard of; sees to those that have ended or fallen silent."""
        self._tend()
        # A machine may be busy with other things, and the dispatcher may have to start anew.
        with contextlib.suppress(GetTimeoutError, RayActorError):
            self._latest = ray.get(self.dispatcher.snapshot.remote(), timeout=patience_s)
            for lane, key in self._latest["groups"].items():
                if lane in self._resting:
                    self._remove(key)
                elif key not in self._cleared:
                    self._groups[lane] = key
            for lane, served in self._latest["served"].items():
                if served != self._served.get(lane):
                    self._served[lane], self._starts[lane] = served, 1
        return self._latest

    def stop(self) -> None:
        """Let lanes that train publish what they have, and wait for them as long as the grace period lasts."""
        if self._tasks and self._launch.grace_s:
            with contextlib.suppress(GetTimeoutError, RayActorError):
                ray.get(self.dispatcher.stop.remote(), timeout=self._launch.grace_s)
                ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=self._launch.grace_s)

    def close(self, patience_s: float = 20.0) -> None:
        """Let the lanes stop at their next question and wait for them, within bounds."""
        with contextlib.suppress(GetTimeoutError, RayActorError):
            ray.get(self.dispatcher.close.remote(), timeout=patience_s)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=patience_s)

    def _start(self, lane: int) -> None:
        self._starts[lane] += 1
        self._began[lane] = time.monotonic()
        place = (self._store.uri, self._store.mark, self._session)
        task = _host.options(scheduling_strategy=self._here).remote(
            lane, place, self._launch, self.dispatcher, self._reference
        )
        self._tasks[task] = lane

    def _tend(self) -> None:
        """Start lanes again that have ended; end those that say nothing for long."""
        ended, going = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0) if self._tasks else ([], [])
        for task in ended:
            lane = self._tasks.pop(task)
            try:
                ray.get(task)
                message = "its workers stopped"
            except Exception as error:  # whatever ended it, those who wait must be told
                message = _gist(error)
            if lane in self._groups:
                self._remove(self._groups.pop(lane))
            if self._starts[lane] < STARTS:
                self._tell("note", lane, f"ended and starts again: {message}")
                self._resting[lane] = time.monotonic()
            else:
                self._tell("lane_lost", lane, message)
        now, silent_s = time.monotonic(), self._latest.get("silent_s", {})
        for task in going:
            lane = self._tasks[task]
            silent = min(silent_s.get(lane, math.inf), now - self._began[lane])
            if silent > 2 * self._launch.timeout_s:  # it has died in a way of its own, or waits for resources
                self._tell("note", lane, f"said nothing for {silent:.0f} s and is ended")
                ray.cancel(task, force=True)
        self._wake()

    def _tell(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(GetTimeoutError, RayActorError):
            ray.get(getattr(self.dispatcher, method).remote(*arguments), timeout=HEARD_S)

    def _wake(self) -> None:
        """Start lanes that have rested, when what was left of them is cleared away. A controller that is killed leaves
        its placement group behind, and the next one would wait for its resources for ever. (Train's own cleaner asks
        the dashboard, which is not there on one machine.)"""
        now = time.monotonic()
        settled = len(self._groups) == len(self._tasks)  # nobody is on his way to a group
        rested = [lane for lane, since in self._resting.items() if now - since > REST_S * (1 if settled else 10)]
        if rested and self._alone and settled:
            shape = {name: amount for name, amount in _worker_resources(self._launch).items() if amount}
            for key, told in placement_group_table().items():
                mine = list(told["bundles"].values()) == [shape] * self._launch.workers
                if mine and told["state"] != "REMOVED" and key not in self._groups.values():
                    self._remove(key)
        for lane in rested:
            del self._resting[lane]
            self._start(lane)

    def _remove(self, key: str) -> None:
        if key in self._cleared:
            return
        self._cleared.add(key)
        with contextlib.suppress(Exception):  # it may be gone already
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))


def ask(dispatcher: Any, method: str, *arguments: Any) -> Any:
    """The dispatcher's answer, from its next incarnation where this one dies. The work itself has no bound that could
    be known here: the dispatcher bounds each of its waits.

    Raises:
        WorkFailed: as the method says.
        RayActorError: it did not come back.
    """
    for attempt in range(ASKS):
        try:
            return ray.get(getattr(dispatcher, method).remote(*arguments))
        except RayActorError:
            if attempt == ASKS - 1:
                raise
            time.sleep(1)
    raise AssertionError("unreachable")


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


class _Shared(Dispatcher):
    """A dispatcher that shares its store with those of other drivers."""

    def __init__(self, storage: str, mark: str | None, milestones: list[int], launch: Launch, session: str):
        store = Store(storage, mark)
        super().__init__(store, milestones, launch.lanes, Leases(store), launch.workers, launch.micro_batch)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._note("the dispatcher died and has started anew")
            mine = (found for found in store.published() if found.manifest.get("session") == session)
            self.computed_steps = sum(found.step - found.manifest["from_step"] for found in mine)


def _worker_resources(launch: Launch) -> dict[str, float]:
    return {"CPU": float(launch.cpus_per_worker), "GPU": float(launch.gpus_per_worker)}


def _check_resources(launch: Launch) -> None:
    have = ray.cluster_resources()
    for name, amount in _worker_resources(launch).items():
        if amount * launch.workers > have.get(name, 0):
            raise SweepError(
                f"one lane needs {amount * launch.workers:g} {name}s and the cluster has {have.get(name, 0):g}; "
                "use a smaller --profile or --set launch.workers=N"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _host(lane: int, place: tuple[str, str | None, str], launch: Launch, dispatcher: Any, reference: Reference) -> None:
    from raysweep import lane as lanes  # brings in torch, which the driver does without

    storage, mark, session = place
    lanes.fit(lanes.LaneConfig(lane, storage, mark, session, launch, dispatcher, reference))


def _gist(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 160) if lines else type(error).__name__
