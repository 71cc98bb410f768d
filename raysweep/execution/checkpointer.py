"""A stretch's checkpoints on their way into the store: while training goes on by a thread, at the end before all else.

What is published between a stretch's ends is kept for a crash alone: the next one takes its place.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysweep.store.store import Store
from trainables.config import Run
from trainables.training.loop import Outcome

Facts = Callable[[Run, int], dict[str, Any]]


@dataclass
class _Way:
    """Of a run what is not published yet: from which checkpoint it goes on, and what was measured since."""

    run: Run
    step: int
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class Publisher:
    """Publishes what the runs of one stretch come to.

    Args:
        begin: the step at which they started.
        facts: what a manifest says beside the way, of a run at a step.
    """

    def __init__(self, store: Store, runs: Sequence[Run], begin: int, facts: Facts):
        self._store, self._facts = store, facts
        self._ways = [_Way(run, begin) for run in runs]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        self._under_way: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._under_way is None or self._under_way.done()

    def begin(self, outcomes: Sequence[Outcome]) -> None:
        """Copy what there is into the host's memory and publish it while training goes on."""
        self._settle()
        copies = [replace(outcome, checkpoint=outcome.checkpoint.copied()) for outcome in outcomes]
        self._under_way = self._thread.submit(self._publish, copies)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Publish what a stretch has ended with. It stands being repeated.

        Raises:
            OSError: the storage cannot be used.
        """
        self._settle()
        self._publish(outcomes)

    def close(self) -> None:
        """No more of it."""
        self._thread.shutdown(wait=True)

    def _settle(self) -> None:
        """Wait for what is on its way. What the storage did not take is in what comes next."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            with contextlib.suppress(OSError):
                under_way.result()

    def _publish(self, outcomes: Sequence[Outcome]) -> None:
        ways = [next(way for way in self._ways if way.run is outcome.run) for outcome in outcomes]
        for way, outcome in zip(ways, outcomes, strict=True):
            way.curve, outcome.curve = way.curve + outcome.curve, []
            way.seconds, outcome.seconds = way.seconds + outcome.seconds, 0.0
            self._put(way, outcome)
        # All are there before any is taken away: those that train together can then go on from one step together.
        for way, outcome in zip(ways, outcomes, strict=True):
            before = self._store.find(way.run, way.step) if way.step else None
            if before and before.manifest.get("between"):
                self._store.free(before)
            way.step, way.curve, way.seconds = outcome.checkpoint.step, [], 0.0

    def _put(self, way: _Way, outcome: Outcome) -> None:
        step = outcome.checkpoint.step
        facts = {"from_step": way.step, "curve": way.curve, "seconds": way.seconds, **self._facts(way.run, step)}
        with tempfile.TemporaryDirectory() as folder:
            outcome.checkpoint.save(Path(folder))
            self._store.publish(way.run, step, Path(folder), facts)
