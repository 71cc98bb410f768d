"""Asynchronous successive halving as a pure rule over what has reached a rung (ASHA, arXiv 1810.05934).

Knows nothing of Ray or of training, so that a journal can replay it and a simulator can drive it.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """What was decided about a trial at a rung, and why. Lower values are better."""

    step: int
    value: float
    cutoff: float  # the worst value that would have gone on
    peers: int  # trials that had reached this rung, this one included
    keep: int  # how many of them go on
    go_on: bool

    @property
    def reason(self) -> str:
        """One line for people."""
        verdict = "goes on" if self.go_on else "stopped"
        rule = f"best {self.keep} of {self.peers} go on, cutoff {self.cutoff:.4g}"
        return f"{verdict} at step {self.step}: {self.value:.4g}, {rule}"


class Rungs:
    """The values that trials had at each rung. The first of every `eta` goes on; the first to arrive always does."""

    def __init__(self, eta: int):
        self.eta = eta
        self._values: dict[int, dict[int, float]] = {}
        self._ranked: dict[int, list[float]] = {}

    def record(self, step: int, trial: int, value: float) -> None:
        """Note a value without deciding, e.g. one that a journal remembers."""
        values, ranked = self._values.setdefault(step, {}), self._ranked.setdefault(step, [])
        if trial in values:
            ranked.remove(values[trial])
        values[trial] = value
        insort(ranked, value)

    def decide(self, step: int, trial: int, value: float) -> Decision:
        """Note a finite value at a rung and say whether its trial goes on.

        Raises:
            ValueError: the value is not finite: such a trial has failed, it is not merely worse.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} at step {step} is no value to compare")
        self.record(step, trial, value)
        ranked = self._ranked[step]
        keep = max(1, len(ranked) // self.eta)
        cutoff = ranked[keep - 1]
        return Decision(step, value, cutoff, len(ranked), keep, value <= cutoff)
