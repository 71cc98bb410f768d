"""Who goes on from a rung, as pure rules over what trials had there.

Nothing here knows of Ray, of training or of a store, so that a journal can replay it and a simulator can drive it. All
but `promotion` stop a trial at a rung; that one lets it wait there, and goes on with the most promising of those who
wait.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from heapq import heapify, heappush
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainables.spec import Spec

Eta = Annotated[int, Field(ge=2)]


class _Rule(Spec):
    """What all schedulers have."""

    @abstractmethod
    def keep(self, peers: int) -> int:
        """How many of those at a rung go on, itself included who has just come."""

    def brackets(self, halvings: int) -> list[int]:
        """How many rungs a trial passes without being judged, in the order of proposal, again and again."""
        return [0]


class _Stopping(_Rule):
    """Schedulers that stop a trial as soon as it has come to a rung.

    With `noise: paired` only where its probe says with confidence `level` that it is worse than the last who goes on:
    by the noise of the two probes' difference, as both drew the same noise and labels. Where that cannot be said, both
    are probed with `larger` times as many samples; what is not worse then either goes on.
    """

    noise: Literal["ignore", "paired"] = "ignore"  # paired: stop only whom a probe shows to be worse
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95  # of confidence, with noise: paired
    larger: Annotated[int, Field(ge=2)] = 4  # times as many samples where it cannot be said


class Asha(_Stopping):
    """The best 1/eta of those who have come to a rung go on (arXiv 1810.05934, as Ray Tune has it: by stopping)."""

    kind: Literal["asha"] = "asha"
    eta: Eta = 2  # the best 1/eta go on

    def keep(self, peers: int) -> int:
        return max(1, peers // self.eta)


class Hyperband(_Stopping):
    """ASHA in several brackets, that pass none, one, two, ... of the first rungs unjudged and get as many steps each
    (arXiv 1603.06560): for the case that early rungs mislead."""

    kind: Literal["hyperband"] = "hyperband"
    eta: Eta = 2  # the best 1/eta go on

    def keep(self, peers: int) -> int:
        return max(1, peers // self.eta)

    def brackets(self, halvings: int) -> list[int]:
        # As many trials in a bracket as its budget pays for; spread evenly over the order of proposal.
        sizes = [math.ceil((halvings + 1) / (left + 1) * self.eta**left) for left in range(halvings, -1, -1)]
        due, order = [0] * len(sizes), []
        for _ in range(sum(sizes)):
            due = [credit + size for credit, size in zip(due, sizes, strict=True)]
            chosen = due.index(max(due))
            due[chosen] -= sum(sizes)
            order.append(chosen)
        return order


class Median(_Stopping):
    """Whoever is worse than the median of those who have come to a rung is stopped there (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    startup_trials: Annotated[int, Field(ge=1)] = 5  # at a rung, before anybody is stopped

    def keep(self, peers: int) -> int:
        return peers if peers <= self.startup_trials else (peers + 1) // 2


class Never(_Rule):
    """Every trial goes to its end: a grid's own way."""

    kind: Literal["never"] = "never"

    def keep(self, peers: int) -> int:
        return peers


class Promotion(_Rule):
    """Every trial waits at its rung; whoever is among the best 1/eta there goes on when there is room (ASHA as it was
    published). Nobody is stopped too early, and nothing goes on only because it came first."""

    kind: Literal["promotion"] = "promotion"
    eta: Eta = 2  # the best 1/eta go on

    def keep(self, peers: int) -> int:
        return peers // self.eta


STOPPING = (Asha, Hyperband, Median)


def _named(value: Any) -> Any:
    """`scheduler: median` is short for `scheduler: {kind: median}`, and what names no kind is of ASHA."""
    return (
        {"kind": value} if isinstance(value, str) else {"kind": "asha", **value} if isinstance(value, dict) else value
    )


_Kind = Literal["asha", "hyperband", "median", "never", "promotion"]
Scheduler = Annotated[
    Asha | Hyperband | Median | Never | Promotion,
    Field(discriminator="kind"),
    BeforeValidator(_named, json_schema_input_type=Asha | Hyperband | Median | Never | Promotion | _Kind),
]


@dataclass(frozen=True)
class Difference:
    """By how much one trial's probe is worse than another's, and the standard error of that."""

    value: float
    error: float

    def is_worse(self, level: float) -> bool:
        """Whether it is worse, at that one-sided level."""
        return self.value > NormalDist().inv_cdf(level) * self.error


@dataclass(frozen=True)
class Doubt:
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
