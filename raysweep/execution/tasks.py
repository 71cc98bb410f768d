"""Pieces of work for lanes, and which of them comes first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.space.launch import Launch
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.leases import Lease
from trainables.config import BATCH_FIELDS, ProbeSpec, Run

Kind = Literal["train", "probe", "replay"]


class TaskFailed(Exception):
    """A stretch or a probe cannot be had, and never will be; the message is for people."""


class RetriesExhausted(TaskFailed):
    """It could not be had this time; another driver may try it once more."""


class ExecutionStopped(TaskFailed):
    """Nothing can be had any more, through no fault of the work's."""


class InputDamaged(Exception):
    """Ask once more: what was there is not there any more."""


class ClaimedElsewhere(Exception):
    """Ask once more: another driver was at it, and is not any more."""


@dataclass
class Demand:
    """Why a piece of work matters: how many wait for it, and the longest way that the run behind them still has."""

    waiters: int = 0
    ahead: int = 0  # steps
    teaches: bool = False
    queued: set[int] = field(default_factory=set)  # tickets of the work for it that is ready


@dataclass
class Task:
    """A piece of work for one lane: train `run` from `begin` to `end`, probe it at `end`, or train it a second time."""

    ticket: int
    kind: Kind
    run: Run
    begin: int
    end: int
    want: Demand
    probe: ProbeSpec | None = None
    owner: str | None = None  # the trial that asked first
    is_teacher: bool = False  # trained for others to look up to rather than as a trial's own run
    attempts: int = 0
    micro_batch: int | None = None  # images that a worker puts through the network at once
    too_big: bool = False  # its workers had too little memory for that
    fellows: list[Task] = field(default_factory=list)  # trained in lockstep with it, on the same lane
    alone: bool = False  # has no fellows any more: with some it went wrong

    @property
    def members(self) -> list[Task]:
        """It and its fellows."""
        return [self, *self.fellows]

    @property
    def company(self) -> tuple[Any, ...] | None:
        """What those have in common that can be its fellows: the stretch, all that their batches follow from, and one
        teacher. None where it can have none."""
        if self.kind != "train" or self.alone:
            return None
        run, teacher = self.run, self.run.phase_after(self.begin).teacher
        if teacher is None:
            return None
        taught = history.key(teacher.run, teacher.step), teacher.weights, teacher.precision
        batch = tuple(getattr(run, name) for name in sorted(BATCH_FIELDS))
        return self.begin, self.end, run.backbone, run.precision, batch, taught

    def mark_solo(self) -> None:
        """There was too little memory for all of its members together, which counts as no attempt."""
        for member in self.members:
            member.too_big = member.alone = True
            member.attempts -= 1

    @property
    def told(self) -> dict[str, Any]:
        """What people are shown of it."""
        method = self.run.phase_after(self.begin - (self.kind == "probe")).term.kind
        trials = [member.owner for member in self.members]
        return {"kind": self.kind, "trials": trials, "teacher": self.is_teacher, "method": method, "end": self.end}

    @property
    def lease(self) -> str:
        """The name of the lease on it: of training, that on the next step, whoever stops where."""
        if self.kind == "train":
            return history.key(self.run, self.begin + 1)
        name = history.key(self.run, self.end) if self.probe is None else probe_key(self.run, self.end, self.probe)
        return f"{self.kind}-{name}"

    def overlaps(self, lease: Lease) -> bool:
        """Whether another driver's lease is on a stretch that has steps of this one."""
        if self.kind != "train" or lease.facts.get("kind") != "train":
            return False
        begin = max(self.begin, lease.facts["begin"])
        if begin >= min(self.end, lease.facts["end"]):
            return False
        try:
            theirs = history.key(Run.model_validate_json(lease.facts["run"]), begin + 1)
        except (LookupError, ValueError):  # of a data set or an encoder that this machine lacks, or another version's
            return False
        return theirs == history.key(self.run, begin + 1)

    def __str__(self) -> str:
        whose = "a teacher" if self.is_teacher else f"trial {self.owner}"
        if self.kind == "probe":
            return f"the probe of {whose} at step {self.end}"
        if self.kind == "replay":
            return f"the replay of steps {self.begin} to {self.end}"
        if self.fellows:
            whose = f"trials {', '.join(str(member.owner) for member in self.members)}"
        return f"{whose} from step {self.begin} to {self.end}"


def split(task: Task | None) -> list[Task]:
    """A lane's work as single pieces."""
    if task is None:
        return []
    members, task.fellows = task.members, []
    return members


@dataclass(frozen=True)
class LaneConfig:
    """What a lane's processes need to know. `dispatcher` is an actor's handle.

    `mark` is the storage's, `session` this driver's. `reference` names the data set and the probe whose statistics
    probes will need: made while a lane is idle.
    """

    lane: int
    storage: str
    mark: str | None
    session: str
    launch: Launch
    dispatcher: Any
    reference: tuple[str, ProbeSpec]
