"""What the lanes of a sweep are doing, as the dispatcher reports it and the terminal shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class LaneActivity:
    """What a lane works on.

    Attributes:
        kind: the kind of its task.
        trials: the names of the trials that the task is for; several if it trains a cohort.
        teacher: whether it trains a teacher.
        method: the method of the phase that it trains or probes, e.g. `vae_align`.
        step: the optimizer step that it has reached.
        steps_per_s: optimizer steps per second; 0 before its first report.
    """

    kind: Literal["train", "probe", "replay"]
    trials: list[str]
    teacher: bool
    method: str
    step: int
    steps_per_s: float


@dataclass(frozen=True)
class Activity:
    """What all lanes of a driver are doing.

    Attributes:
        lanes: those that work.
        computed_steps: the optimizer steps that they have trained so far.
        elsewhere: descriptions of the tasks of other drivers that this driver waits for.
        notes: messages for the user, the oldest first.
    """

    lanes: list[LaneActivity] = field(default_factory=list)
    computed_steps: int = 0
    elsewhere: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
