"""Commits the checkpoints of a training to the store: in a thread while training goes on, and at its end.

A checkpoint between the ends of a training is only of use after a crash: the next one takes its place.
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
    """What is not committed yet of a run.

    Attributes:
        step: of the last committed checkpoint, or where the training began.
        curve: the points measured since then.
        seconds: of training since then.
    """

    run: Run
    step: int
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class Checkpointer:
    """Commits the checkpoints of the runs that one task trains.

    Args:
        begin: the step at which the runs start.
        facts: returns what a manifest says of a run at a step; origin, curve and seconds are filled in here.
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
        """Commit what the training has ended with. May be repeated.

        Raises:
            OSError: the storage cannot be used.
        """
        self._wait()
        self._commit(outcomes)

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._thread.shutdown(wait=True)

    def _wait(self) -> None:
        """Wait for the commit under way. What the storage did not take is part of the next one."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            with contextlib.suppress(OSError):
                under_way.result()

    def _commit(self, outcomes: Sequence[Outcome]) -> None:
        pending = [next(one for one in self._pending if one.run is outcome.run) for outcome in outcomes]
        for one, outcome in zip(pending, outcomes, strict=True):
            one.curve, outcome.curve = one.curve + outcome.curve, []
            one.seconds, outcome.seconds = one.seconds + outcome.seconds, 0.0
            self._put(one, outcome)
        # All are there before any earlier one is deleted: a cohort can then go on from one step together.
        for one, outcome in zip(pending, outcomes, strict=True):
            before = self._store.find(one.run, one.step) if one.step else None
            if before and before.manifest.training.between:
                self._store.free(before)
            one.step, one.curve, one.seconds = outcome.checkpoint.step, [], 0.0

    def _put(self, pending: _Pending, outcome: Outcome) -> None:
        step = outcome.checkpoint.step
        facts = self._facts(pending.run, step)
        facts = replace(facts, from_step=pending.step, curve=pending.curve, seconds=pending.seconds)
        with tempfile.TemporaryDirectory() as folder:
            outcome.checkpoint.save(Path(folder))
            self._store.commit(pending.run, step, Path(folder), facts)
