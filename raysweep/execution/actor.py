"""The dispatcher and its pool as a Ray actor, and how trials and lanes call it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError

from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import Pool
from raysweep.execution.task_leases import TaskLeases
from raysweep.retry import retry_call
from raysweep.space.launch import Launch
from raysweep.store.leases import Leases
from raysweep.store.store import Store

ATTEMPTS = 60  # calls, one second apart, to an actor that died and is being restarted
PLACES = 1000  # calls that are answered at a time, of lanes and the driver; and of trials, beside those under way


class DispatcherActor:
    """Holds a dispatcher and its pool, and passes calls on to them.

    Ray restarts the actor when its process dies. A restarted actor has an empty state: trials and lanes repeat their
    calls, and what is in the store is not computed again.

    A trial's call lasts as long as its work. The calls of lanes and of the driver have places of their own, so that any
    number of trials may wait. Ray runs each group of methods on an event loop of its own; the dispatcher and the pool
    run on one loop, to which both groups hand their calls.

    Args:
        storage, mark: the store's URI, and the mark by which it is recognised.
        milestones: steps at which every run has a checkpoint.
    """

    def __init__(self, storage: str, mark: str | None, milestones: list[int], launch: Launch):
        store = Store(storage, mark)
        leases = TaskLeases(Leases(store.files), store)
        self._pool = Pool(launch.lanes, leases, launch.fewest, launch.micro_batch, launch.cohort)
        self._dispatcher = Dispatcher(store, milestones, self._pool)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="dispatcher").start()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._pool.add_note("the dispatcher died and was restarted")

    async def dispatcher(self, method: str, *arguments: Any) -> Any:
        """Call a method of the dispatcher, for a trial."""
        return await self._on_loop(getattr(self._dispatcher, method)(*arguments))

    @ray.method(concurrency_group="lanes")
    async def pool(self, method: str, *arguments: Any) -> Any:
        """Call a method of the pool, for a lane or the driver."""
        return await self._on_loop(getattr(self._pool, method)(*arguments))

    async def _on_loop(self, call: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))


def start(store: Store, milestones: list[int], launch: Launch, trials: int, scheduling_strategy: Any) -> Any:
    """Start the actor; returns its handle.

    Args:
        trials: the most trials that are under way at once.
    """
    actor_class = ray.remote(concurrency_groups={"lanes": PLACES})(DispatcherActor)
    return actor_class.options(
        num_cpus=0, max_concurrency=trials + PLACES, max_restarts=-1, scheduling_strategy=scheduling_strategy
    ).remote(store.uri, store.files.mark, milestones, launch)


def call(
    actor: Any, part: Literal["dispatcher", "pool"], method: str, *arguments: Any, timeout_s: float | None = None
) -> Any:
    """Call a method of the actor's dispatcher or pool and return its result. Where the actor dies, the call is repeated
    once Ray has restarted it.

    Args:
        timeout_s: of each attempt. None: no limit, because a task may take any time.

    Raises:
        TaskFailed: as the method says.
        GetTimeoutError: there was no answer for `timeout_s`.
        RayActorError: the actor did not come back.
    """
    action = partial(_call, actor, part, method, arguments, timeout_s)
    return retry_call(action, RayActorError, ATTEMPTS, pause_s=1.0)


def _call(actor: Any, part: str, method: str, arguments: tuple[Any, ...], timeout_s: float | None) -> Any:
    return ray.get(getattr(actor, part).remote(method, *arguments), timeout=timeout_s)
