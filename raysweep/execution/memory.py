"""The micro-batch: how many images a worker puts through the network at once."""

from __future__ import annotations

import math
from typing import Any

from raysweep.execution.tasks import Task


class Memory:
    """How many images a worker may put through the network at once. The limit is halved when a worker runs out of
    memory.

    A reduced limit holds for all tasks that need as much memory: those with the same network, data, batch size,
    precision and method.

    Args:
        workers: the fewest workers that share a batch.
        micro_batch: the user's limit; None: a worker's whole share.
    """

    def __init__(self, workers: int, micro_batch: int | None):
        self._workers, self._limit = workers, micro_batch
        self._reduced: dict[tuple[Any, ...], int] = {}

    def micro_batch(self, task: Task) -> int | None:
        """The limit for that task."""
        if task.kind == "probe":
            return self._limit
        return self._reduced.get(_memory_key(task), self._limit)

    def halve(self, task: Task) -> str | None:
        """Halve the limit of a task that ran out of memory. Returns None, or the reason why it cannot be halved."""
        if task.kind == "probe":
            return f"out of memory in {task}: make probe.batch_size smaller"
        run, share = task.run, math.ceil(task.run.batch_size / self._workers)
        current = min(self.micro_batch(task) or share, share)
        term = run.phase_after(task.begin).term
        if term.needs_whole_batch:
            return (
                f"out of memory, and {term.kind} needs its whole batch at once: use launch.checkpoint_blocks or workers"
            )
        if current == 1:
            return "out of memory with a single image on each worker: use launch.checkpoint_blocks"
        self._reduced[_memory_key(task)] = current // 2
        return None


def _memory_key(task: Task) -> tuple[Any, ...]:
    run = task.run
    return run.backbone, run.data, run.batch_size, run.precision, run.phase_after(task.begin).term.kind
