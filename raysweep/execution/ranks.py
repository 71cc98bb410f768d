"""What the workers of a lane tell one another beside gradients: objects, failures, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from raysweep.retry import POLL_S, RETRY_LIMIT_S, waiting_for_storage

REMIND_S = 60.0  # between two times of saying what is waited for

Result = TypeVar("Result")


class Ranks:
    """The workers of one lane. Every method is called by all of them.

    Args:
        timeout_s: how long one may wait for the others before it counts them as dead.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float):
        self.rank, self.world_size = rank, world_size
        # Over gloo whatever the gradients use: NCCL moves tensors of its own device only.
        several = world_size > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)) if several else None
        self._asked: tuple[torch.Tensor, Any] | None = None

    def share(self, mine: Any) -> Any:
        """Rank 0's object."""
        box = [mine]
        if self._group:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def together(self, action: Callable[[], Result], tell: Callable[[str], None]) -> Result:
        """Do something on every rank. What fails on one fails on all, so that none waits for another; while the storage
        is of no use (an OSError), all wait and try again.

        Args:
            tell: is told what is waited for, once a minute, so that it is known that somebody waits.

        Raises:
            Exception: the error of the first rank that had one, or the OSError that lasted for too long.
        """
        began, told = time.monotonic(), -math.inf
        while True:
            result, mine = None, None
            try:
                result = action()
            except Exception as error:  # whatever it is, the others must hear of it
                mine = error
            worst = next((error for error in self._everyone(mine) if error is not None), None)
            if worst is None:
                return result  # type: ignore[return-value]
            late = self.share(time.monotonic() - began > RETRY_LIMIT_S)
            if late or not isinstance(worst, OSError):
                raise worst
            if time.monotonic() - told > REMIND_S:
                tell(waiting_for_storage(worst))
                told = time.monotonic()
            time.sleep(POLL_S)

    def agree(self, mine: int) -> int:
        """The most that any rank said in the call before this one: nobody waits for an answer that is under way."""
        if self._group is None:
            return mine
        before = self.settle()
        flag = torch.tensor([mine])
        self._asked = (flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True))
        return before

    def settle(self) -> int:
        """Wait for the answer that is under way, if one is."""
        asked, self._asked = self._asked, None
        if asked is None:
            return 0
        flag, work = asked
        work.wait()
        return int(flag.item())

    def _everyone(self, mine: Any) -> list[Any]:
        if self._group is None:
            return [mine]
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine, group=self._group)
        return everyone
