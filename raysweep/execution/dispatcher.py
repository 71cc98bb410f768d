"""The dispatcher: trials ask it for a run at a step, for a probe or for a replay, and nothing is computed twice.

If the result is in the store, the dispatcher returns at once. If it is being computed, by this driver or under another
driver's lease, the dispatcher waits for it. Otherwise the work is cut into tasks at the milestones and submitted to the
pool. The module uses plain asyncio and no Ray: `actor.py` puts the dispatcher into an actor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from raysweep.execution.pool import ATTEMPTS, Pool
from raysweep.execution.tasks import ClaimedElsewhere, Demand, InputDamaged, RetriesExhausted, Task
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.records import Certificate, ProbeRecord
from raysweep.store.store import CheckpointIndex
from trainables.config import ProbeSpec, Run

Answer = TypeVar("Answer")


class Dispatcher:
    """Cuts what the trials of one driver ask for into tasks. All methods run on one event loop.

    Args:
        store: where checkpoints and records are found.
        milestones: steps at which every run has a checkpoint.
        pool: gives the tasks to lanes.
    """

    def __init__(self, store: CheckpointIndex, milestones: Sequence[int], pool: Pool):
        self.store, self.milestones, self.pool = store, list(milestones), pool
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._demands: dict[str, Demand] = {}

    async def reach(
        self, run: Run, step: int, trial: str | None, teaches: bool = False, ahead: int | None = None
    ) -> None:
        """Return once `run`'s checkpoint at `step` is in the store.

        Args:
            trial: the name of the trial that asks.
            teaches: whether the checkpoint is needed as a teacher.
            ahead: how many steps the caller still has to train after `step`. Default: those to the run's end.

        Raises:
            TaskFailed: it cannot be reached, because its loss is not finite or there is too little memory.
            RetriesExhausted: a TaskFailed; the workers died, or the inputs were damaged, too often.
            ExecutionStopped: nothing can be trained any more.
        """
        key = history.key(run, step)
        demand = self._demands.setdefault(key, Demand())
        demand.waiters += 1
        demand.ahead = max(demand.ahead, run.steps - step if ahead is None else ahead)
        demand.teaches |= teaches
        self.pool.renew(demand)
        if key not in self._under_way:
            self._start(key, self._make(run, step, trial, demand))
        try:
            await asyncio.shield(self._under_way[key])
        finally:
            demand.waiters -= 1
            if not demand.waiters:
                self._demands.pop(key, None)

    async def probe(self, run: Run, step: int, spec: ProbeSpec, trial: str | None) -> ProbeRecord:
        """The record of a probe of `run`'s checkpoint at `step`, for which `reach` has returned.

        Raises:
            TaskFailed: the probe's workers died too often, or the checkpoint was damaged each time.
            ExecutionStopped: nothing can be probed any more.
        """
        key = probe_key(run, step, spec)
        damaged = 0
        while damaged <= ATTEMPTS:
            if record := await self._query_store(partial(self.store.record, ProbeRecord, key)):
                return record
            if key not in self._under_way:
                demand = Demand(waiters=1, ahead=run.steps - step)
                self._start(key, self.pool.submit(Task("probe", run, step, step, demand, spec, trial)))
            try:
                await asyncio.shield(self._under_way[key])
            except ClaimedElsewhere:
                continue
            except InputDamaged:
                damaged += 1
                await self.reach(run, step, trial)
        raise RetriesExhausted(
            f"the checkpoint at step {step} was damaged more than {ATTEMPTS} times: check the storage"
        )

    async def replay(self, run: Run, step: int) -> Certificate | None:
        """The certificate of `run`'s checkpoint at `step`: whether training without a stop at the previous checkpoint
        yields the same bits. None where an earlier checkpoint that the replay needs is missing.

        Raises:
            TaskFailed: the training failed.
            ExecutionStopped: nothing can be trained any more.
        """
        key = history.key(run, step)
        while True:
            if certificate := await self._query_store(partial(self.store.record, Certificate, key)):
                return certificate
            begin = await self._replay_begin(run, step)
            if begin is None:
                return None
            if f"replay-{key}" not in self._under_way:
                self._start(f"replay-{key}", self.pool.submit(Task("replay", run, begin, step, Demand())))
            try:
                await asyncio.shield(self._under_way[f"replay-{key}"])
            except ClaimedElsewhere:
                continue
            except InputDamaged:
                return None

    # --- inside

    async def _query_store(self, query: Callable[[], Answer]) -> Answer:
        """The result of a query to the store, repeated while the storage cannot be used."""

        async def attempt() -> Answer:
            return query()

        return await self.pool.retry_storage(attempt)

    def _start(self, key: str, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way[key] = task

        def forget(ended: asyncio.Task[Any]) -> None:
            self._under_way.pop(key, None)
            if not ended.cancelled():
                ended.exception()  # marks it as retrieved; callers that wait for the task get it too

        task.add_done_callback(forget)

    async def _make(self, run: Run, step: int, trial: str | None, demand: Demand) -> None:
        """Have `run` trained to `step`, from the latest checkpoint or milestone before `step`."""
        damaged = 0
        while damaged <= ATTEMPTS:
            # Another study may have a checkpoint where this one has no milestone.
            latest = await self._query_store(partial(self.store.deepest, run, step))
            deepest = latest.step if latest else 0
            if deepest == step:
                return
            milestones = await self._milestones()
            begin = max([deepest, *(milestone for milestone in milestones if milestone < step)])
            ahead = step - begin + demand.ahead
            inputs = [self.reach(run, begin, trial, demand.teaches, ahead)] if begin else []
            if teacher := run.phase_after(begin).teacher:
                inputs.append(self.reach(teacher.run, teacher.step, trial, True, ahead))
            try:
                await asyncio.gather(*inputs)
                task = Task("train", run, begin, step, demand, owner=trial, is_teacher=demand.teaches)
                reached = await self.pool.submit(task)
            except ClaimedElsewhere:
                continue
            except InputDamaged:
                damaged += 1
                continue
            if reached is not None and reached < step:
                continue  # the rest is submitted from there
            if await self._query_store(partial(self.store.find, run, step)) is None:
                raise RetriesExhausted(
                    f"step {step} was committed but is not in {self.store.uri}: do all nodes see that storage?"
                )
        raise RetriesExhausted(f"the inputs of step {step} were damaged more than {ATTEMPTS} times: check the storage")

    async def _milestones(self) -> set[int]:
        """The steps at which runs are cut, because a study needs a checkpoint there: a study of this driver, or of
        another driver on this store."""
        leases = self.pool.leases
        return {*self.milestones, *(await self.pool.retry_storage(leases.milestones) if leases else ())}

    async def _replay_begin(self, run: Run, step: int) -> int | None:
        """The step from which a replay trains to `step`: the step at which the segment before the last one began. None
        where a checkpoint that the replay needs is missing."""
        last = await self._query_store(partial(self.store.find, run, step))
        if last is None:
            return None
        begin = last.manifest.training.from_step
        if begin:
            before = await self._query_store(partial(self.store.find, run, begin))
            if before is None:
                return None
            begin = before.manifest.training.from_step
        if begin and await self._query_store(partial(self.store.find, run, begin)) is None:
            return None
        return begin
