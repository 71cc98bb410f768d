"""The dispatcher: trials ask it for a run at a step, for a probe or for a replay, and nothing is computed twice.

If the result is in the store, the dispatcher returns at once. If it is being computed, by this driver or under another
driver's lease, the dispatcher waits for it. Otherwise the work is cut into tasks at the milestones and submitted to the
pool. For each result there is one coroutine that looks into the store, has computed what is missing, and looks again;
all callers wait for it. The module uses plain asyncio and no Ray: `actor.py` puts the dispatcher into an actor. Storage
calls run in threads, so that a slow storage delays only those who need its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from raysweep.execution.pool import ATTEMPTS, Pool
from raysweep.execution.tasks import Demand, InputDamaged, RetriesExhausted, Task, TaskOutdated
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
        pool: gives the tasks to lanes. Its milestones take in those above, and those of each run that is asked for.
    """

    def __init__(self, store: CheckpointIndex, milestones: Sequence[int], pool: Pool):
        self.store, self.pool = store, pool
        pool.milestones.extend(milestones)
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._demands: dict[str, Demand] = {}

    async def reach(self, run: Run, step: int, trial: str | None, rungs: Sequence[int] = ()) -> None:
        """Return once `run`'s checkpoint at `step` is in the store.

        Args:
            trial: the name of the trial that asks.
            rungs: the steps at which the trial will ask for the run. Checkpoints are committed there, and where the
                run's phases and teachers end, by whatever run gets there first.

        Raises:
            TaskFailed: it cannot be reached, because its loss is not finite or there is too little memory.
            RetriesExhausted: a TaskFailed; the workers died, or the inputs were damaged, too often.
            ExecutionStopped: nothing can be trained any more.
        """
        self.pool.milestones.add(run, {step, *rungs})
        await self._reach(run, step, trial, teaches=False, ahead=run.steps - step)

    async def probe(self, run: Run, step: int, spec: ProbeSpec, trial: str | None) -> ProbeRecord:
        """The record of a probe of `run`'s checkpoint at `step`, for which `reach` has returned.

        Raises:
            TaskFailed: the probe's workers died too often, or the checkpoint was damaged each time.
            ExecutionStopped: nothing can be probed any more.
        """
        key = probe_key(run, step, spec)
        return await self._once(key, partial(self._measure, run, step, spec, trial, key))

    async def replay(self, run: Run, step: int) -> Certificate | None:
        """The certificate of `run`'s checkpoint at `step`: whether training without a stop at the previous checkpoint
        yields the same bits. None where an earlier checkpoint that the replay needs is missing.

        Raises:
            TaskFailed: the training failed.
            ExecutionStopped: nothing can be trained any more.
        """
        key = history.key(run, step)
        return await self._once(f"replay-{key}", partial(self._certify, run, step, key))

    # --- inside

    async def _query_store(self, query: Callable[[], Answer]) -> Answer:
        """The result of a query to the store, repeated while the storage cannot be used."""
        return await self.pool.retry_storage(partial(asyncio.to_thread, query))

    async def _once(self, key: str, work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The result of `work`, which is under way at most once for each key."""
        if key not in self._under_way:
            task = asyncio.get_running_loop().create_task(work())
            self._under_way[key] = task
            task.add_done_callback(partial(self._forget, key))
        return await asyncio.shield(self._under_way[key])

    def _forget(self, key: str, ended: asyncio.Task[Any]) -> None:
        del self._under_way[key]
        if not ended.cancelled():
            ended.exception()  # marks it as retrieved; callers that wait for the task get it too

    async def _reach(self, run: Run, step: int, trial: str | None, teaches: bool, ahead: int) -> None:
        """Return once a checkpoint of a known run is in the store.

        Args:
            teaches: whether the checkpoint is needed as a teacher.
            ahead: how many steps the caller still has to train after `step`.
        """
        key = history.key(run, step)
        demand = self._demands.setdefault(key, Demand())
        demand.waiters += 1
        demand.ahead = max(demand.ahead, ahead)
        demand.teaches |= teaches
        self.pool.renew(demand)
        try:
            await self._once(key, partial(self._make, run, step, trial, demand))
        finally:
            demand.waiters -= 1
            if not demand.waiters:
                self._demands.pop(key, None)

    async def _make(self, run: Run, step: int, trial: str | None, demand: Demand) -> None:
        """Have `run` trained to `step`, from the latest checkpoint or milestone before `step`."""
        damaged = 0
        while damaged <= ATTEMPTS:
            looked = self.pool.mark()
            # Another study may have a checkpoint where this one has no milestone.
            latest = await self._query_store(partial(self.store.deepest, run, step))
            deepest = latest.step if latest else 0
            if deepest == step:
                return
            if leases := self.pool.leases:
                await self.pool.retry_storage(leases.refresh)
            begin = max([deepest, *self.pool.cuts(run, deepest, step)])
            ahead = step - begin + demand.ahead
            inputs = [self._reach(run, begin, trial, demand.teaches, ahead)] if begin else []
            if teacher := run.phase_after(begin).teacher:
                inputs.append(self._reach(teacher.run, teacher.step, trial, True, ahead))
            try:
                await asyncio.gather(*inputs)
                task = Task("train", run, begin, step, demand, None, trial, demand.teaches, looked)
                reached = await self.pool.submit(task)
            except TaskOutdated:
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

    async def _measure(self, run: Run, step: int, spec: ProbeSpec, trial: str | None, key: str) -> ProbeRecord:
        """Have a checkpoint probed, unless the record is in the store."""
        damaged = 0
        while damaged <= ATTEMPTS:
            if record := await self._query_store(partial(self.store.record, ProbeRecord, key)):
                return record
            demand = Demand(waiters=1, ahead=run.steps - step)
            try:
                await self.pool.submit(Task("probe", run, step, step, demand, spec, trial))
            except TaskOutdated:
                continue
            except InputDamaged:
                damaged += 1
                await self.reach(run, step, trial)
        raise RetriesExhausted(
            f"the checkpoint at step {step} was damaged more than {ATTEMPTS} times: check the storage"
        )

    async def _certify(self, run: Run, step: int, key: str) -> Certificate | None:
        """Have a segment replayed, unless the certificate is in the store."""
        while True:
            if certificate := await self._query_store(partial(self.store.record, Certificate, key)):
                return certificate
            begin = await self._replay_begin(run, step)
            if begin is None:
                return None
            try:
                await self.pool.submit(Task("replay", run, begin, step, Demand()))
            except TaskOutdated:
                continue
            except InputDamaged:
                return None

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
