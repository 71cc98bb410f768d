"""Commits the checkpoints of a segment to the store: in a thread while training continues, and at the segment's end.

A checkpoint inside a segment is needed only after a crash. It is deleted once the next checkpoint is committed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from raysweep.store.manifest import TrainingFacts
from raysweep.store.store import Store
from trainables.config import Run
from trainables.training.loop import Outcome

Facts = Callable[[Run, int], TrainingFacts]


@dataclass
class _Pending:
    """What has been measured of a run but not been committed yet.

    Attributes:
        step: the step of the last committed checkpoint, or the step at which the segment began.
        curve: the points measured since that step.
        seconds: of training since that step.
    """

    run: Run
    step: int
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class Checkpointer:
    """Commits the checkpoints of the runs that one task trains.

    Args:
        begin: the step at which the runs start.
        facts: returns the facts for the manifest of a run at a step; this class sets `from_step`, `curve` and
            `seconds`.
    """

    def __init__(self, store: Store, runs: Sequence[Run], begin: int, facts: Facts):
        self._store, self._facts = store, facts
        self._pending = [_Pending(run, begin) for run in runs]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpointer")
        self._under_way: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether no commit is under way."""
        return self._under_way is None or self._under_way.done()

    def begin(self, outcomes: Sequence[Outcome]) -> None:
        """Copy the runs' state into the host's memory and commit it while training goes on."""
        self._wait()
        copies = [replace(outcome, checkpoint=outcome.checkpoint.copied()) for outcome in outcomes]
        self._under_way = self._thread.submit(self._commit, copies)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Commit the state at which training has ended. May be repeated after an error.

        Raises:
            OSError: the storage cannot be used.
        """
        self._wait()
        self._commit(outcomes)

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._thread.shutdown(wait=True)

    def _wait(self) -> None:
        """Wait for the commit under way. If it failed, the next commit includes what it measured."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            with contextlib.suppress(OSError):
                under_way.result()

    def _commit(self, outcomes: Sequence[Outcome]) -> None:
        matching = [next(pending for pending in self._pending if pending.run is outcome.run) for outcome in outcomes]
        for pending, outcome in zip(matching, outcomes, strict=True):
            pending.curve, outcome.curve = pending.curve + outcome.curve, []
            pending.seconds, outcome.seconds = pending.seconds + outcome.seconds, 0.0
            self._put(pending, outcome)
        # All are committed before any earlier one is deleted, so that a cohort can always continue from one step.
        for pending, outcome in zip(matching, outcomes, strict=True):
            before = self._store.find(pending.run, pending.step) if pending.step else None
            if before and before.manifest.training.between:
                self._store.free(before)
            pending.step, pending.curve, pending.seconds = outcome.checkpoint.step, [], 0.0

    def _put(self, pending: _Pending, outcome: Outcome) -> None:
        step = outcome.checkpoint.step
        facts = self._facts(pending.run, step)
        facts = replace(facts, from_step=pending.step, curve=pending.curve, seconds=pending.seconds)
        with tempfile.TemporaryDirectory() as folder:
            outcome.checkpoint.save(Path(folder))
            self._store.commit(pending.run, step, Path(folder), facts)
