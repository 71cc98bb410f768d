"""How many images workers put through the network at once."""

from __future__ import annotations

import math
from typing import Any

from raysweep.execution.tasks import Task


class Memory:
    """How many images workers may put through the network at once: half as many where memory has run out.

    Told apart by what decides the need, so that every stretch of a kind is trained alike.

    Args:
        workers: among whom a batch is shared, the fewest that there may be.
        micro_batch: the user's limit; None: a worker's whole share.
    """

    def __init__(self, workers: int, micro_batch: int | None):
        self._workers, self._limit = workers, micro_batch
        self._smaller: dict[tuple[Any, ...], int] = {}

    def micro_batch(self, task: Task) -> int | None:
        """The limit for that piece of work."""
        if task.kind == "probe":
            return self._limit
        return self._smaller.get(_need(task), self._limit)

    def halve(self, task: Task) -> str | None:
        """Memory has run out there; returns why nothing can be done about it, or None."""
        if task.kind == "probe":
            return f"out of memory in {task}: make probe.batch_size smaller"
        run, share = task.run, math.ceil(task.run.batch_size / self._workers)
        now = min(self.micro_batch(task) or share, share)
        term = run.phase_after(task.begin).term
        if term.needs_whole_batch:
            return (
                f"out of memory, and {term.kind} needs its whole batch at once: use launch.checkpoint_blocks or workers"
            )
        if now == 1:
            return "out of memory with a single image on each worker: use launch.checkpoint_blocks"
        self._smaller[_need(task)] = now // 2
        return None


def _need(task: Task) -> tuple[Any, ...]:
    run = task.run
    return run.backbone, run.data, run.batch_size, run.precision, run.phase_after(task.begin).term.kind
