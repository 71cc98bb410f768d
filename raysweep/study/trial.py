"""A trial of a study: its state, to which journal entries are applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.space.domains import Point
from raysweep.study.rungs import Decision, Recheck
from trainables.redaction import public

State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAILED", "UNAVAILABLE"]


@dataclass
class TrialState:
    """One proposed configuration, its metrics and its end. Steps are optimizer steps.

    Attributes:
        row: the enqueued row that it comes from, counted from 0.
        reason: why it ended, in one line without secrets.
        at: when it began, in the study's own time (`raysweep.study.ordering`). Waiting at a rung moves it forward.
        again: whether it failed and the next driver tries it again, because the cause may lie outside the trial.
        repeats: the number of an earlier trial of the same configuration, whose results it takes; None if there is
            none.
        probes: metrics by step.
        waits: whether it waits at a rung to be promoted.
        proposed_at, probed_at, ended_at: in seconds since 1970, by the clock of the driver's host; 0 in journals of
            earlier versions.
        driver: the index, in the study's drivers, of the one that proposed it.
    """

    number: int
    point: Point
    row: int | None = None
    state: State = "RUNNING"
    reason: str = ""
    at: int = 0
    again: bool = False
    repeats: int | None = None
    probes: dict[int, dict[str, float]] = field(default_factory=dict)
    rechecks: dict[int, Recheck] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    waits: bool = False
    proposed_at: float = field(default=0.0, compare=False)
    probed_at: dict[int, float] = field(default_factory=dict, compare=False)
    ended_at: float = field(default=0.0, compare=False)
    driver: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        self.reason = public(self.reason)

    @property
    def ended(self) -> bool:
        """Whether it has ended, in any state."""
        return self.state != "RUNNING"

    @property
    def step(self) -> int:
        """The step of its last probe; 0 before the first."""
        return max(self.probes, default=0)

    @property
    def recheck(self) -> Recheck | None:
        """The recheck that must be done before the scheduler can decide about the trial; None if there is none."""
        return next((recheck for step, recheck in self.rechecks.items() if step not in self.decisions), None)

    def last(self, metric: str) -> float | None:
        """The metric at the last probe; None if there is none."""
        return self.probes[self.step].get(metric) if self.probes else None

    def apply(self, kind: str, facts: Mapping[str, Any], when: float = 0.0) -> None:
        """Apply a journal entry that was written at time `when`, in seconds since 1970."""
        if kind == "probed":
            self.probes[facts["step"]], self.probed_at[facts["step"]] = facts["metrics"], when
        elif kind == "doubted":
            self.rechecks[facts["step"]] = Recheck(**facts)
        elif kind == "decided":
            self.decisions[facts["step"]] = Decision(**facts)
        elif kind == "waits":
            self.waits = True
        elif kind == "promoted":
            decision = {name: value for name, value in facts.items() if name != "at"}
            self.waits, self.at, self.decisions[facts["step"]] = False, facts["at"], Decision(**decision)
        elif kind == "ended":
            self.waits, self.state, self.ended_at = False, facts["state"], when
            self.reason, self.again = public(facts["reason"]), facts.get("again", False)
        elif kind == "retried":
            self.state, self.reason = "RUNNING", ""
