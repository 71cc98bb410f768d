"""What the workers of a lane exchange besides gradients: objects, errors, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from raysweep import retry

REMIND_S = 60.0  # between two messages that the ranks wait for the storage

# What ranks exchange after each step; the largest number of any rank counts. STOP + n: stop at step n.
GO_ON, SAVE, STOP = range(3)

Result = TypeVar("Result")


class Ranks:
    """The workers of one lane. Every method is called by all of them.

    Args:
        timeout_s: how long a rank waits for the others before they count as dead.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float):
        self.rank, self.world_size = rank, world_size
        # Always gloo, whatever backend the gradients use: NCCL only moves tensors on GPUs.
        several = world_size > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)) if several else None
        self._pending: tuple[torch.Tensor, Any] | None = None  # an all-reduce under way: its tensor and handle

    def share(self, own: Any) -> Any:
        """Rank 0's object, on every rank."""
        box = [own]
        if self._group:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def together(self, action: Callable[[], Result], notify: retry.Notify) -> Result:
        """Return the result of `action`, which every rank calls. An error on one rank is raised on all, so that no rank
        waits for another. While the storage is unusable (an OSError on any rank), all wait and repeat the action.

        Args:
            notify: receives the reason for waiting, once a minute.

        Raises:
            Exception: the error of the first rank that had one, or the OSError that lasted for `retry.RETRY_LIMIT_S`.
        """
        outage = retry.StorageOutage(notify, REMIND_S)
        while True:
            result, own = None, None
            try:
                result = action()
            except Exception as caught:  # whatever the error, the other ranks must be told
                own = caught
            error = next((error for error in self._gather(own) if error is not None), None)
            if error is None:
                return result  # type: ignore[return-value]
            if not isinstance(error, OSError) or not self.share(outage.failed(error)):  # rank 0's clock decides
                raise error
            time.sleep(retry.POLL_S)

    def agree(self, own: int) -> int:
        """The largest number that any rank gave in the previous call. The numbers of this call are exchanged in the
        background while training continues."""
        if self._group is None:
            return own
        before = self.last_agreed()
        flag = torch.tensor([own])
        self._pending = (flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True))
        return before

    def last_agreed(self) -> int:
        """Wait for the numbers of the previous `agree` and return the largest; 0 if none are pending."""
        pending, self._pending = self._pending, None
        if pending is None:
            return 0
        flag, work = pending
        work.wait()
        return int(flag.item())

    def _gather(self, own: Any) -> list[Any]:
        if self._group is None:
            return [own]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, own, group=self._group)
        return gathered


class Pauses:
    """When the ranks save a checkpoint, and at which step they stop. Rank 0 decides, and all do it after the same step.

    Args:
        every_s: seconds between two checkpoints.

    Attributes:
        stop_at: the step at which they have agreed to stop; 0: at once. None: at the end of the training.
    """

    def __init__(self, ranks: Ranks, every_s: float):
        self.stop_at: int | None = None
        self._ranks, self._every_s = ranks, every_s
        self._due = time.monotonic() + every_s

    def should_save(self, step: int, asked: int | None, idle: bool) -> bool:
        """Whether to save a checkpoint after `step`. Every rank calls this after each step.

        Args:
            asked: where rank 0 is asked to stop; 0: at once. A step that it has reached already is ignored.
            idle: whether rank 0 has saved the checkpoint before.
        """
        own = GO_ON
        if self._ranks.rank == 0:
            if asked is not None and (step < asked or not asked) and not self.should_stop(asked):
                own = STOP + asked
            elif time.monotonic() > self._due and idle:
                own, self._due = SAVE, time.monotonic() + self._every_s
        agreed = self._ranks.agree(own)
        if agreed >= STOP and not self.should_stop(agreed - STOP):
            self.stop_at = agreed - STOP
        return agreed == SAVE

    def should_stop(self, step: int) -> bool:
        """Whether the ranks stop at `step`, or before."""
        return self.stop_at is not None and self.stop_at <= step
