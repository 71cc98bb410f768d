"""Who trains what, when: trials ask for a run at a step, lanes ask for work, and nothing is given out twice.

Plain asyncio, no Ray: `launch.py` puts it into an actor. A trial that asks for what is published gets it at once; for
what is under way, here or under another driver's lease, it waits, holding nothing; the rest is cut at the milestones
and queued for the lanes, in the order of `work.Queue`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from raysweep.execution.pool import ATTEMPTS, Pool
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import ClaimedElsewhere, Demand, InputDamaged, RetriesExhausted
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.leases import Leases
from raysweep.store.store import CheckpointIndex
from trainables.config import ProbeSpec, Run

Seen = TypeVar("Seen")


class Dispatcher(Pool):
    """The state of one driver's computing. All methods run on one event loop.

    Args:
        store: where checkpoints are found.
        milestones: steps at which all runs publish.
        lanes: how many there are.
        leases: how drivers that share the store keep out of each other's way; None where there is only this one.
        workers, micro_batch, cohort: as `Pool` takes them.
    """

    def __init__(
        self,
        store: CheckpointIndex,
        milestones: Sequence[int],
        lanes: int,
        leases: Leases | None = None,
        workers: int = 1,
        micro_batch: int | None = None,
        cohort: int = 1,
    ):
        super().__init__(lanes, TaskLeases(leases, store) if leases else None, workers, micro_batch, cohort)
        self.store, self.milestones = store, list(milestones)
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._wants: dict[str, Demand] = {}

    async def reach(
        self, run: Run, step: int, trial: str | None, teaches: bool = False, ahead: int | None = None
    ) -> None:
        """Return when `run`'s checkpoint at `step` is published.

        Args:
            trial: who asks.
            teaches: whether it is wanted as a teacher.
            ahead: steps that whoever asks has before it after this; by default those to the run's end.

        Raises:
            WorkFailed: it cannot be: its loss is not finite, or, a `RetriesExhausted`, its workers died too often.
        Halted: nothing can be trained any more.
        """
        key = history.key(run, step)
        want = self._wants.setdefault(key, Demand())
        want.waiters += 1
        want.ahead = max(want.ahead, run.steps - step if ahead is None else ahead)
        want.teaches |= teaches
        self._ready.renew(want)
        if key not in self._under_way:
            self._start(key, self._make(run, step, trial, want))
        try:
            await asyncio.shield(self._under_way[key])
        finally:
            want.waiters -= 1
            if not want.waiters:
                self._wants.pop(key, None)

    async def probe(self, run: Run, step: int, spec: ProbeSpec, trial: str | None) -> dict[str, Any]:
        """The record of that probe of `run`'s checkpoint at `step`, which has been reached.

        Raises:
            WorkFailed: the probe's workers died too often, or what it looks at was damaged each time.
        """
        key = probe_key(run, step, spec)
        damaged = 0
        while damaged <= ATTEMPTS:
            if record := await self._look(partial(self.store.record, "probes", key)):
                return record
            if key not in self._under_way:
                want = Demand(waiters=1, ahead=run.steps - step)
                self._start(key, self._work("probe", run, step, step, trial, want, spec))
            try:
                await asyncio.shield(self._under_way[key])
            except ClaimedElsewhere:
                continue
            except InputDamaged:
                damaged += 1
                await self.reach(run, step, trial)
        raise RetriesExhausted(f"the checkpoint at step {step} was found damaged {ATTEMPTS} times: check the storage")

    async def replay(self, run: Run, step: int) -> dict[str, Any] | None:
        """The certificate of `run`'s checkpoint at `step`: whether training through the checkpoint that it came from,
        without a stop there, yields its very bits. None where that cannot be tried: what it came from is gone.

        Raises:
            WorkFailed: the training failed.
        """
        key = history.key(run, step)
        while True:
            if certificate := await self._look(partial(self.store.record, "certificates", key)):
                return certificate
            found = await self._look(partial(self.store.find, run, step))
            if found is None:
                return None
            begin = found.manifest["from_step"]
            if begin:
                parent = await self._look(partial(self.store.find, run, begin))
                begin = parent.manifest["from_step"] if parent else -1
            if begin < 0 or (begin and await self._look(partial(self.store.find, run, begin)) is None):
                return None
            if f"replay-{key}" not in self._under_way:
                self._start(f"replay-{key}", self._work("replay", run, begin, step, None, Demand()))
            try:
                await asyncio.shield(self._under_way[f"replay-{key}"])
            except ClaimedElsewhere:
                continue
            except InputDamaged:
                return None

    # --- inside

    async def _look(self, look: Callable[[], Seen]) -> Seen:
        """What the store says, as soon as it can be asked."""
        while True:
            try:
                found = look()
            except OSError as error:
                await self._storage_is_silent(error)
            else:
                self._silent_since = None
                return found

    def _start(self, key: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way[key] = task

        def over(ended: asyncio.Task[Any]) -> None:
            self._under_way.pop(key, None)
            if not ended.cancelled():
                ended.exception()  # was looked at: whoever waited for it has it too

        task.add_done_callback(over)

    async def _make(self, run: Run, step: int, trial: str | None, want: Demand) -> None:
        damaged = 0
        while damaged <= ATTEMPTS:
            try:
                # Another study may have published where this one has no milestone.
                found = await self._look(partial(self.store.deepest, run, step))
                deepest = found.step if found else 0
                if deepest == step:
                    return
                wanted = {*self.milestones, *(await self._claims.milestones() if self._claims else ())}
                begin = max([deepest, *(milestone for milestone in wanted if milestone < step)])
                ahead = step - begin + want.ahead
                needs = [self.reach(run, begin, trial, want.teaches, ahead)] if begin else []
                if teacher := run.phase_after(begin).teacher:
                    needs.append(self.reach(teacher.run, teacher.step, trial, True, ahead))
                await asyncio.gather(*needs)
                reached = await self._work("train", run, begin, step, trial, want)
                if reached is not None and reached < step:
                    continue  # the rest is asked for from there
                there = await self._look(partial(self.store.find, run, step))
            except ClaimedElsewhere:
                continue
            except OSError as error:
                await self._storage_is_silent(error)
                continue
            except InputDamaged:
                damaged += 1
                continue
            if there is None:
                raise RetriesExhausted(
                    f"step {step} was published but is not in {self.store.uri}: do all nodes see it?"
                )
        raise RetriesExhausted(f"what leads to step {step} was found damaged {ATTEMPTS} times: check the storage")
