"""Starts and watches the lanes of a driver, and restarts those that end too early."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.cluster.connection import PlacementRequest, last_line, shortage, worker_resources
from raysweep.execution.actor import start
from raysweep.execution.pool import PoolStatus
from raysweep.execution.tasks import LaneConfig
from raysweep.space.launch import Launch
from raysweep.store.store import Store
from raysweep.study.activity import Activity
from trainables.config import ProbeSpec

ANSWER_S = 30.0  # how long the dispatcher may take to answer the driver
RESTART_DELAY_S = 3.0  # before a lane restarts: its old controller may ask for a placement group until then
STARTS = 5  # of a lane without a finished task in between; more while another lane works
SHORTAGE_S = 5.0  # how long a lane waits for resources before the user is told; usually it gets them sooner
Reference = tuple[str, ProbeSpec]  # a data set, and a probe of it


@dataclass
class _Lane:
    """What the driver knows of one lane.

    Attributes:
        host: the Ray task that runs it; None while it waits to be restarted.
        started: when it was started, in seconds of `time.monotonic`.
        starts: how often it was started since it last finished a task.
        served: how many tasks it had finished when the pool was last asked.
        placement_group: where its workers live, by Ray's id; None until they have come up.
        ended: when it last ended, in seconds of `time.monotonic`.
        request: the request for the resources that it needs to start.
        requested: when the request was made, in seconds of `time.monotonic`.
    """

    host: Any = None
    started: float = -math.inf
    starts: int = 0
    served: int = 0
    placement_group: str | None = None
    ended: float = -math.inf
    request: PlacementRequest | None = None
    requested: float = -math.inf


class Lanes:
    """A dispatcher and the lanes that work for it.

    Args:
        milestones: steps at which every run has a checkpoint.
        reference: the data set, and the probe that compares samples with it; idle lanes compute its statistics.
        alone: whether no other driver uses the cluster.
        trials: the most trials that are under way at once. Default: as `launch` says.
    """

    def __init__(
        self,
        launch: Launch,
        store: Store,
        milestones: list[int],
        reference: Reference,
        alone: bool,
        trials: int | None = None,
    ):
        self._launch, self._store, self._reference, self._alone = launch, store, reference, alone
        self._session = uuid.uuid4().hex[:12]
        # The processes that control the lanes run on the driver's node, because they are useless without the driver.
        self._here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = start(store, milestones, launch, trials or launch.concurrent_trials, self._here)
        self._lanes = {number: _Lane() for number in range(launch.lanes)}
        self._removed: set[str] = set()  # placement groups
        self._latest = PoolStatus()
        self._trained: dict[str, int] = {}  # optimizer steps by worker processes; outlives a dispatcher that dies
        self._start_due_lanes()

    def activity(self, timeout_s: float = ANSWER_S) -> Activity:
        """What the lanes are doing, or were doing when the dispatcher last answered. Also restarts lanes that have
        ended, and ends lanes that have sent no message for too long."""
        self._restart_ended()
        # The machine may be too busy to answer in time, or the dispatcher may be restarting.
        with contextlib.suppress(GetTimeoutError, RayActorError):
            self._latest = ray.get(self.actor.pool.remote("status"), timeout=timeout_s)
            for number, group in self._latest.groups.items():
                lane = self._lanes.get(number)
                if lane is None or lane.host is None:
                    self._remove(group)
                elif group not in self._removed:
                    lane.placement_group = group
            for number, served in self._latest.served.items():
                lane = self._lanes.get(number)
                if lane and lane.served != served:
                    lane.served, lane.starts = served, 1
            for workers, steps in self._latest.trained.items():
                self._trained[workers] = max(steps, self._trained.get(workers, 0))
        return replace(self._latest.activity, computed_steps=sum(self._trained.values()))

    def stop(self) -> None:
        """Have the lanes that train save a checkpoint, and wait for them, at most `launch.grace_s` seconds."""
        hosts = self._hosts()
        if hosts and self._launch.grace_s:
            with contextlib.suppress(GetTimeoutError, RayActorError):
                ray.get(self.actor.pool.remote("stop"), timeout=self._launch.grace_s)
                ray.wait(hosts, num_returns=len(hosts), timeout=self._launch.grace_s)

    def close(self, timeout_s: float = 20.0) -> None:
        """Have the lanes stop when they ask for the next task, and wait for them."""
        for lane in self._lanes.values():
            if lane.request:
                lane.request.close()
        with contextlib.suppress(GetTimeoutError, RayActorError):
            ray.get(self.actor.pool.remote("close"), timeout=timeout_s)
        if hosts := self._hosts():
            ray.wait(hosts, num_returns=len(hosts), timeout=timeout_s)

    def _hosts(self) -> list[Any]:
        return [lane.host for lane in self._lanes.values() if lane.host]

    def _start(self, number: int) -> None:
        lane = self._lanes[number]
        config = LaneConfig(
            number,
            self._store.uri,
            self._store.files.mark,
            self._session,
            self._launch,
            self.actor,
            self._reference,
        )
        lane.host = _host.options(scheduling_strategy=self._here).remote(config)
        lane.starts += 1
        lane.started = time.monotonic()

    def _restart_ended(self) -> None:
        """Restart lanes that have ended, and end those that have sent no message for too long."""
        hosts = self._hosts()
        ended, _ = ray.wait(hosts, num_returns=len(hosts), timeout=0) if hosts else ([], [])
        for number, lane in list(self._lanes.items()):
            if lane.host is None:
                continue
            if lane.host in ended:
                self._after_end(number, lane)
            else:
                self._end_if_silent(number, lane)
        self._start_due_lanes()

    def _after_end(self, number: int, lane: _Lane) -> None:
        """Handle the end of a lane: have it restarted after a delay, or give it up."""
        try:
            ray.get(lane.host)
            message = "its workers stopped"
        except Exception as error:  # whatever the cause, the trials that wait must be told
            message = last_line(error)
        lane.host = None
        if lane.placement_group:
            self._remove(lane.placement_group)
            lane.placement_group = None
        if min(lane.starts for lane in self._lanes.values()) < STARTS:  # some lane works, or may still start
            self._notify("note", number, f"ended and starts again: {message}")
            lane.ended = time.monotonic()
        else:
            del self._lanes[number]
            self._notify("lane_lost", number, message)

    def _end_if_silent(self, number: int, lane: _Lane) -> None:
        last_message_s = self._latest.silent_s.get(number, math.inf)
        silent_s = min(last_message_s, time.monotonic() - lane.started)
        limit_s = 2 * self._launch.timeout_s
        if lane.placement_group is None:  # its workers are still starting and send no messages yet
            limit_s = max(limit_s, self._launch.start_timeout_s)
        if silent_s > limit_s:  # its workers hang, which Ray Train does not notice
            self._notify("note", number, f"sent no message for {silent_s:.0f} s and is ended")
            ray.cancel(lane.host, force=True)

    def _notify(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(GetTimeoutError, RayActorError):
            ray.get(self.actor.pool.remote(method, *arguments), timeout=ANSWER_S)

    def _start_due_lanes(self) -> None:
        """Start the lanes whose restart is due, once their leftover placement groups are removed."""
        now = time.monotonic()
        running = [lane for lane in self._lanes.values() if lane.host]
        all_up = all(lane.placement_group for lane in running)  # otherwise a group may belong to a lane that starts
        delay_s = RESTART_DELAY_S * (1 if all_up else 10)
        due = [
            number
            for number, lane in self._lanes.items()
            if lane.host is None and now - lane.ended > delay_s * min(lane.starts, 20)
        ]
        if due and self._alone and all_up and self._remove_leftovers({lane.placement_group for lane in running}):
            return  # a controller that is about to end may ask for another group: look again before starting
        for number in due:
            if self._alone or self._has_resources(number, now):
                self._start(number)

    def _remove_leftovers(self, used: set[str | None]) -> bool:
        """Remove the placement groups that killed controllers have left behind. Otherwise the next controller would
        wait for their resources for ever: Ray Train's own cleaner needs the dashboard, which is off on a single
        machine. Returns whether there were any."""
        shape = worker_resources(self._launch)
        possible = [[shape] * workers for workers in range(self._launch.fewest, self._launch.most + 1)]
        leftovers = {
            key
            for key, group in placement_group_table().items()
            if list(group["bundles"].values()) in possible and group["state"] != "REMOVED"
        } - {*used, *self._removed}
        for key in leftovers:
            self._remove(key)
        return bool(leftovers)

    def _has_resources(self, number: int, now: float) -> bool:
        """Whether the cluster has the resources that the lane needs to start. They may come later, when nodes start.
        Where no other lane works, the lane is given up after `launch.start_timeout_s`."""
        lane = self._lanes[number]
        if lane.request is None:
            lane.request, lane.requested = PlacementRequest(self._launch), now
        if lane.request.granted():
            lane.request = None
            return True
        if now - lane.requested > SHORTAGE_S:
            self._notify("note", number, f"waits for resources: it {shortage(self._launch)}")
        if now - lane.requested > self._launch.start_timeout_s and not self._hosts():
            lane.request.close()
            del self._lanes[number]
            self._notify("lane_lost", number, f"it {shortage(self._launch)}")
        return False

    def _remove(self, group: str) -> None:
        if group in self._removed:
            return
        self._removed.add(group)
        with contextlib.suppress(Exception):  # it may be gone already
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


@ray.remote(num_cpus=0, max_retries=0)
def _host(config: LaneConfig) -> None:
    from raysweep.execution.lane import fit  # imports torch, which the driver does not need

    fit(config)
