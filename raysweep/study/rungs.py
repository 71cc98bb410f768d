"""The values that trials had at each rung, and what a scheduler decides from them.

Pure rules: a journal can replay them and a simulator can drive them.
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
    """By how much one trial's probe is worse than another's, and the standard error of that."""

    value: float
    error: float

    def is_worse(self, level: float) -> bool:
        """Whether it is worse, at that one-sided level."""
        return self.value > NormalDist().inv_cdf(level) * self.error


@dataclass(frozen=True)
class Recheck:
    """A trial that would be stopped at a rung, if it were clear that it is worse than its rival: both are probed again,
    with more samples."""

    step: int
    rival: int
    samples: int
    difference: float  # of the first probes
    error: float


@dataclass(frozen=True)
class Decision:
    """What was decided about a trial at a rung, and on what evidence. Lower values are better."""

    step: int
    value: float
    cutoff: float  # the worst value that would have gone on
    peers: int  # trials that had reached this rung, this one included
    keep: int  # how many of them go on
    go_on: bool
    rival: int | None = None  # the trial whose value the cutoff is
    # Where noise counts: by how much the trial is worse than its rival, with its standard error, over so many samples.
    difference: float | None = None
    error: float | None = None
    samples: int | None = None

    @property
    def reason(self) -> str:
        """One line for people."""
        verdict = "goes on" if self.go_on else "stopped"
        rule = f"best {self.keep} of {self.peers} go on, cutoff {self.cutoff:.4g}"
        told = f"{verdict} at step {self.step}: {self.value:.4g}, {rule}"
        if self.difference is None:
            return told
        than = f"trial {self.rival} in {self.samples} samples"
        clear = "worse than" if not self.go_on else "is not clearly worse than"
        return f"{told}; {self.difference:.3g} ± {self.error:.2g} {clear} {than}"


class Rungs:
    """The values that trials had at each rung, and what a scheduler makes of them.

    Args:
        halvings: how many rungs a trial passes at most before its end.
    """

    def __init__(self, scheduler: Scheduler, halvings: int):
        self.scheduler = scheduler
        self._brackets = scheduler.brackets(halvings)
        self._values: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)  # by bracket and step; by trial
        self._ranked: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
        self._waiting: dict[int, list[tuple[float, int]]] = defaultdict(list)  # heaps, by step

    def judged(self, trial: int, steps: list[int]) -> list[int]:
        """Of a trial's rungs and its end, those at which it is probed."""
        return steps[min(self._bracket(trial), len(steps) - 1) :]

    def record(self, step: int, trial: int, value: float) -> None:
        """Note a value without deciding, e.g. one that a journal remembers."""
        rung = (self._bracket(trial), step)
        values, ranked = self._values[rung], self._ranked[rung]
        if trial in values:
            ranked.remove((values[trial], trial))
        values[trial] = value
        insort(ranked, (value, trial))

    def decide(self, step: int, trial: int, value: float) -> Decision:
        """Note a finite value at a rung and say whether its trial goes on, as values rank.

        Raises:
            ValueError: the value is not finite: such a trial has failed, it is not merely worse.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} at step {step} is no value to compare")
        self.record(step, trial, value)
        ranked = self._ranked[self._bracket(trial), step]
        keep = max(1, self.scheduler.keep(len(ranked)))
        cutoff, rival = ranked[keep - 1]
        return Decision(step, value, cutoff, len(ranked), keep, value <= cutoff, rival)

    def wait(self, step: int, trial: int, value: float) -> None:
        """Note a finite value of a trial that now waits at a rung."""
        self.record(step, trial, value)
        heappush(self._waiting[step], (value, trial))

    def leave(self, step: int, trial: int) -> None:
        """A trial waits at a rung no longer: it goes on, or has ended."""
        self._waiting[step].remove((self._values[self._bracket(trial), step][trial], trial))
        heapify(self._waiting[step])

    def promising(self, last: bool = False) -> tuple[int, Decision] | None:
        """The trial that goes on next of those that wait, deepest rung first, and why; None where none does for now.

        Args:
            last: nobody else will come: of however few the best goes on.
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
