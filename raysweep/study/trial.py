"""A trial of a study, as its journal tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.space.domains import Point
from raysweep.study.rungs import Decision, Recheck

State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAILED", "UNAVAILABLE"]


@dataclass
class TrialState:
    """One proposed configuration and what became of it. Steps are optimizer steps."""

    number: int
    point: Point
    row: int | None = None  # which enqueued row it is
    state: State = "RUNNING"
    reason: str = ""
    at: int = 0  # when it began, in the study's time (turns.py); later by as much as it has waited at rungs
    again: bool = False  # it failed for no fault of its own that is known: another driver tries it once more
    repeats: int | None = None  # an earlier trial of the same configuration, whose answer it takes
    probes: dict[int, dict[str, float]] = field(default_factory=dict)
    rechecks: dict[int, Recheck] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    waits: bool = False  # at a rung, for its turn to go on
    # In seconds since 1970, by the clock of the driver's host; 0 in journals of earlier versions.
    proposed_at: float = field(default=0.0, compare=False)
    probed_at: dict[int, float] = field(default_factory=dict, compare=False)
    ended_at: float = field(default=0.0, compare=False)
    driver: int = field(default=0, compare=False)  # which of the study's drivers proposed it

    @property
    def ended(self) -> bool:
        return self.state != "RUNNING"

    @property
    def step(self) -> int:
        """How far it has come: its last probe."""
        return max(self.probes, default=0)

    @property
    def recheck(self) -> Recheck | None:
        """What is to be found out before it can be decided whether it goes on."""
        return next((recheck for step, recheck in self.rechecks.items() if step not in self.decisions), None)

    def last(self, metric: str) -> float | None:
        """The metric at the last probe."""
        return self.probes[self.step].get(metric) if self.probes else None

    def hear(self, kind: str, facts: Mapping[str, Any], when: float = 0.0) -> None:
        """What an entry of the journal says about it."""
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
            self.reason, self.again = facts["reason"], facts.get("again", False)
        elif kind == "retried":
            self.state, self.reason = "RUNNING", ""
