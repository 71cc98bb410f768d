"""The dispatcher's actor and the lanes, started again when they end before their time. Knows no search, no science."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections import Counter
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.cluster.connection import PlacementRequest, gist, shortage, worker_resources
from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.tasks import LaneConfig
from raysweep.space.launch import Launch
from raysweep.store.leases import Leases
from raysweep.store.store import Store
from trainables.config import ProbeSpec

HEARD_S = 30.0  # how long a look at the lanes may take
ASKS = 60  # of a dispatcher that died and starts anew, a second apart
REST_S = 3.0  # before a lane starts again: until then what was left of it may still ask for a placement group
STARTS = 5  # of each lane that finishes nothing in between; more while another lane works
TOLD_S = 5.0  # before it is said that a lane waits for room: it mostly need not
Reference = tuple[str, ProbeSpec]  # a data set, and a probe of it


class Lanes:
    """A dispatcher and the lanes that work for it, each started again when it ends before its time.

    Args:
        reference: the data set and the probe that will compare with it.
        alone: whether the cluster is this driver's own.
    """

    def __init__(self, launch: Launch, store: Store, milestones: list[int], reference: Reference, alone: bool):
        self._launch, self._store, self._reference, self._alone = launch, store, reference, alone
        self._session = uuid.uuid4().hex[:12]
        # What controls the lanes stays where the driver is: it is of no use without it.
        self._here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(_Shared).options(
            num_cpus=0, max_concurrency=1000, max_restarts=-1, scheduling_strategy=self._here
        )
        self.dispatcher = actor.remote(store.uri, store.mark, milestones, launch, self._session)
        self._tasks: dict[Any, int] = {}
        self._starts = Counter(dict.fromkeys(range(launch.lanes), 0))  # of a lane, since it last finished something
        self._began: dict[int, float] = {}
        self._served: dict[int, int] = {}
        self._groups: dict[int, str] = {}  # of the lanes whose workers have come up
        self._cleared: set[str] = set()
        self._resting = dict.fromkeys(range(launch.lanes), -math.inf)  # lanes that do not run -> since when
        self._rooms: dict[int, PlacementRequest] = {}  # asked for, of lanes that may start
        self._asked: dict[int, float] = {}  # when
        self._latest: dict[str, Any] = {"lanes": [], "computed_steps": 0, "elsewhere": [], "notes": []}
        self._wake()

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
        for room in self._rooms.values():
            room.close()
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
                message = gist(error)
            if lane in self._groups:
                self._remove(self._groups.pop(lane))
            if min(self._starts.values()) < STARTS:  # somebody works, or may yet
                self._tell("note", lane, f"ended and starts again: {message}")
                self._resting[lane] = time.monotonic()
            else:
                del self._starts[lane]
                self._tell("lane_lost", lane, message)
        now, silent_s = time.monotonic(), self._latest.get("silent_s", {})
        for task in going:
            lane = self._tasks[task]
            silent = min(silent_s.get(lane, math.inf), now - self._began[lane])
            if silent > 2 * self._launch.timeout_s:  # it has died in a way of its own
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
        rest_s = REST_S * (1 if settled else 10)
        rested = [lane for lane, since in self._resting.items() if now - since > rest_s * min(self._starts[lane], 20)]
        if rested and self._alone and settled:
            shape = worker_resources(self._launch)
            possible = [[shape] * workers for workers in range(self._launch.fewest, self._launch.most + 1)]
            for key, told in placement_group_table().items():
                mine = list(told["bundles"].values()) in possible
                if mine and told["state"] != "REMOVED" and key not in self._groups.values():
                    self._remove(key)
        for lane in rested:
            if self._alone or self._has_room(lane, now):
                del self._resting[lane]
                self._start(lane)

    def _has_room(self, lane: int, now: float) -> bool:
        """Whether the cluster has what the lane needs, which may be long in coming: nodes start, or were lost. Where no
        other lane works it is given up after a while."""
        room = self._rooms.get(lane)
        if room is None:
            room = self._rooms[lane] = PlacementRequest(self._launch)
            self._asked[lane] = now
        if room.found():
            del self._rooms[lane]
            return True
        if now - self._asked[lane] > TOLD_S:
            self._tell("note", lane, f"waits for room: it {shortage(self._launch)}")
        if now - self._asked[lane] > self._launch.start_timeout_s and not self._tasks:
            room.close()
            del self._rooms[lane], self._resting[lane], self._starts[lane]
            self._tell("lane_lost", lane, f"it {shortage(self._launch)}")
        return False

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


class _Shared(Dispatcher):
    """A dispatcher that shares its store with those of other drivers."""

    def __init__(self, storage: str, mark: str | None, milestones: list[int], launch: Launch, session: str):
        store = Store(storage, mark)
        each = launch.fewest, launch.micro_batch, launch.cohort
        super().__init__(store, milestones, launch.lanes, Leases(store), *each)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._note("the dispatcher died and has started anew")
            mine = (found for found in store.published() if found.manifest.get("session") == session)
            self.computed_steps = sum(found.step - found.manifest["from_step"] for found in mine)


@ray.remote(num_cpus=0, max_retries=0)
def _host(lane: int, place: tuple[str, str | None, str], launch: Launch, dispatcher: Any, reference: Reference) -> None:
    from raysweep.execution.lane import fit  # brings in torch, which the driver does without

    storage, mark, session = place
    fit(LaneConfig(lane, storage, mark, session, launch, dispatcher, reference))
