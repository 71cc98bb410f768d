"""The values that trials had at each rung, and what a scheduler decides from them.

These are pure rules: they need no store and no clock, so a journal can replay them and a simulator can use them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from heapq import heapify, heappush
from statistics import NormalDist

from raysweep.space.schedulers import Scheduler


@dataclass(frozen=True)
class Difference:
    """By how much one trial's probe is worse than another's, with the standard error of the difference."""

    value: float
    error: float

    def is_worse(self, level: float) -> bool:
        """Whether it is worse at this one-sided confidence level, such as 0.95."""
        return self.value > NormalDist().inv_cdf(level) * self.error


@dataclass(frozen=True)
class Recheck:
    """A second comparison at a rung, with more samples, of a trial that ranks below its rival but is not clearly worse.

    Attributes:
        rival: the other trial's number.
        samples: how many samples the new probes draw.
        difference: between the first two probes; `error` is its standard error.
    """

    step: int
    rival: int
    samples: int
    difference: float
    error: float


@dataclass(frozen=True)
class Decision:
    """What was decided about a trial at a rung, and on what evidence. Lower values are better.

    Attributes:
        cutoff: the worst value with which a trial goes on.
        peers: how many trials have reached this rung, this one included.
        keep: how many of them go on.
        rival: the trial whose value is the cutoff.
        difference: with `noise: paired`, by how much the trial is worse than its rival in probes of `samples` samples;
            `error` is its standard error.
    """

    step: int
    value: float
    cutoff: float
    peers: int
    keep: int
    go_on: bool
    rival: int | None = None
    difference: float | None = None
    error: float | None = None
    samples: int | None = None

    @property
    def reason(self) -> str:
        """The decision in one line, for the user."""
        verdict = "goes on" if self.go_on else "stopped"
        rule = f"best {self.keep} of {self.peers} go on, cutoff {self.cutoff:.4g}"
        by_rank = f"{verdict} at step {self.step}: {self.value:.4g}, {rule}"
        if self.difference is None:
            return by_rank
        than = f"trial {self.rival} in {self.samples} samples"
        clear = "worse than" if not self.go_on else "is not clearly worse than"
        return f"{by_rank}; {self.difference:.3g} ± {self.error:.2g} {clear} {than}"


class Rungs:
    """The values of all trials at each rung. Trials of different brackets are not compared.

    Args:
        halvings: the largest number of rungs before a trial's end.
    """

    def __init__(self, scheduler: Scheduler, halvings: int):
        self.scheduler = scheduler
        self._brackets = scheduler.brackets(halvings)
        self._values: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)  # by bracket and step; by trial
        self._ranked: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
        self._waiting: dict[int, list[tuple[float, int]]] = defaultdict(list)  # heaps, by step

    def probed_rungs(self, trial: int, steps: list[int]) -> list[int]:
        """The steps at which a trial is probed: its rungs without the first ones that its bracket skips, and its end.

        Args:
            steps: the trial's rungs and its end.
        """
        return steps[min(self._bracket(trial), len(steps) - 1) :]

    def record(self, step: int, trial: int, value: float) -> None:
        """Add a value without a decision, such as one from a journal."""
        rung = (self._bracket(trial), step)
        values, ranked = self._values[rung], self._ranked[rung]
        if trial in values:
            ranked.remove((values[trial], trial))
        values[trial] = value
        insort(ranked, (value, trial))

    def decide(self, step: int, trial: int, value: float) -> Decision:
        """Add a value at a rung and decide by its rank whether its trial goes on.

        Raises:
            ValueError: the value is not finite. Such a trial has failed and is not merely worse.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} at step {step} cannot be compared: it is not finite")
        self.record(step, trial, value)
        ranked = self._ranked[self._bracket(trial), step]
        keep = max(1, self.scheduler.keep(len(ranked)))
        cutoff, rival = ranked[keep - 1]
        return Decision(step, value, cutoff, len(ranked), keep, value <= cutoff, rival)

    def wait(self, step: int, trial: int, value: float) -> None:
        """Add a finite value of a trial that now waits at a rung."""
        self.record(step, trial, value)
        heappush(self._waiting[step], (value, trial))

    def leave(self, step: int, trial: int) -> None:
        """Remove a trial from those that wait at a rung, because it goes on or has ended."""
        self._waiting[step].remove((self._values[self._bracket(trial), step][trial], trial))
        heapify(self._waiting[step])

    def promising(self, last: bool = False) -> tuple[int, Decision] | None:
        """The next waiting trial that may go on, from the deepest such rung, with the decision; None if there is none.

        Args:
            last: no other trial will come, so the best one goes on however few there are.
        """
        for step in sorted(self._waiting, reverse=True):
            if not self._waiting[step]:
                continue
            value, trial = self._waiting[step][0]
            ranked = self._ranked[self._bracket(trial), step]
            keep = max(self.scheduler.keep(len(ranked)), last)
            if bisect_left(ranked, (value, trial)) < keep:
                return trial, Decision(step, value, ranked[keep - 1][0], len(ranked), keep, True, ranked[keep - 1][1])
        return None

    def _bracket(self, trial: int) -> int:
        return self._brackets[trial % len(self._brackets)]
