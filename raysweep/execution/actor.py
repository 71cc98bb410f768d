"""The dispatcher and its pool as a Ray actor, and how trials and lanes call it."""

from __future__ import annotations

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


class DispatcherActor:
    """Holds a dispatcher and its pool, and passes calls on to them.

    Ray restarts the actor when its process dies. A restarted actor has an empty state: trials and lanes repeat their
    calls, and what is in the store is not computed again.

    Args:
        storage, mark: the store's URI, and the mark by which it is recognised.
        milestones: steps at which every run has a checkpoint.
        session: identifies the driver in the manifests of what its lanes have trained.
    """

    def __init__(self, storage: str, mark: str | None, milestones: list[int], launch: Launch, session: str):
        store = Store(storage, mark)
        leases = TaskLeases(Leases(store.files), store)
        self._pool = Pool(launch.lanes, leases, launch.fewest, launch.micro_batch, launch.cohort)
        self._dispatcher = Dispatcher(store, milestones, self._pool)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._pool.add_note("the dispatcher died and was restarted")
            own = (c for c in store.checkpoints() if c.manifest.training.session == session)
            self._pool.computed_steps = sum(c.step - c.manifest.training.from_step for c in own)

    async def dispatcher(self, method: str, *arguments: Any) -> Any:
        """Call a method of the dispatcher, for a trial."""
        return await getattr(self._dispatcher, method)(*arguments)

    async def pool(self, method: str, *arguments: Any) -> Any:
        """Call a method of the pool, for a lane or the driver."""
        return await getattr(self._pool, method)(*arguments)


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
