"""Pieces of work for lanes, and which of them comes first."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep import history
from raysweep.leases import Lease
from trainables.spec import OF_THE_BATCH, DispersiveTerm, ProbeSpec, Run

PASSED_OVER = 16  # times per lane that work may be passed over before it goes first whatever its rank

Kind = Literal["train", "probe", "replay"]


class WorkFailed(Exception):
    """A stretch or a probe cannot be had, and never will be; the message is for people."""


class WorkLost(WorkFailed):
    """It could not be had this time; another driver may try it once more."""


class Halted(WorkFailed):
    """Nothing can be had any more, through no fault of the work's."""


class Again(Exception):
    """Ask once more: what was there is not there any more."""


class Elsewhere(Exception):
    """Ask once more: another driver was at it, and is not any more."""


@dataclass
class Want:
    """Why a piece of work matters: how many wait for it, and the longest way that the run behind them still has."""

    waiters: int = 0
    ahead: int = 0  # steps
    teaches: bool = False
    queued: set[int] = field(default_factory=set)  # tickets of the work for it that is ready


@dataclass
class Assignment:
    """A piece of work for one lane: train `run` from `begin` to `end`, probe it at `end`, or train it a second time."""

    ticket: int
    kind: Kind
    run: Run
    begin: int
    end: int
    want: Want
    probe: ProbeSpec | None = None
    owner: str | None = None  # the trial that asked first
    is_teacher: bool = False  # trained for others to look up to rather than as a trial's own run
    attempts: int = 0
    micro_batch: int | None = None  # images that a worker puts through the network at once
    too_big: bool = False  # its workers had too little memory for that
    fellows: list[Assignment] = field(default_factory=list)  # trained in lockstep with it, on the same lane
    alone: bool = False  # has no fellows any more: with some it went wrong

    @property
    def members(self) -> list[Assignment]:
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
        batch = tuple(getattr(run, name) for name in sorted(OF_THE_BATCH))
        return self.begin, self.end, run.backbone, run.precision, batch, taught

    def fall_apart(self) -> None:
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


def dissolve(assignment: Assignment | None) -> list[Assignment]:
    """A lane's work as single pieces."""
    if assignment is None:
        return []
    members, assignment.fellows = assignment.members, []
    return members


class Memory:
    """How many images workers may put through the network at once: half as many where memory has run out.

    Told apart by what decides the need, so that every stretch of a kind is trained alike.

    Args:
        workers: among whom a batch is shared, the fewest that there may be.
        micro_batch: the user's limit; None: a worker's whole share.
    """

    def __init__(self, workers: int, micro_batch: int | None):
        self._workers, self._limit = workers, micro_batch
        self._smaller: dict[tuple[Any, ...], int] = {}

    def micro_batch(self, assignment: Assignment) -> int | None:
        """The limit for that piece of work."""
        if assignment.kind == "probe":
            return self._limit
        return self._smaller.get(_need(assignment), self._limit)

    def halve(self, assignment: Assignment) -> str | None:
        """Memory has run out there; returns why nothing can be done about it, or None."""
        if assignment.kind == "probe":
            return f"out of memory in {assignment}: make probe.batch_size smaller"
        run, share = assignment.run, math.ceil(assignment.run.batch_size / self._workers)
        now = min(self.micro_batch(assignment) or share, share)
        if isinstance(run.phase_after(assignment.begin).term, DispersiveTerm):
            return (
                "out of memory, and dispersive needs its whole batch at once: use launch.checkpoint_blocks or workers"
            )
        if now == 1:
            return "out of memory with a single image on each worker: use launch.checkpoint_blocks"
        self._smaller[_need(assignment)] = now // 2
        return None


def _need(assignment: Assignment) -> tuple[Any, ...]:
    run = assignment.run
    return run.backbone, run.data, run.batch_size, run.precision, run.phase_after(assignment.begin).term.kind


class Queue:
    """The work that is ready, first what others wait for."""

    def __init__(self) -> None:
        self._ready: dict[int, tuple[Assignment, int]] = {}  # with how many had been given out when it came
        self._heap: list[tuple[tuple[int, int], int]] = []
        self._given = 0

    def push(self, assignment: Assignment) -> None:
        """Add a piece of work."""
        self._ready[assignment.ticket] = (assignment, self._given)
        assignment.want.queued.add(assignment.ticket)
        self.renew(assignment.want)

    def renew(self, want: Want) -> None:
        """Somebody else wants it: what is ready for it may come earlier."""
        for ticket in want.queued:
            heapq.heappush(self._heap, (_rank(self._ready[ticket][0]), ticket))

    def pop(self, lanes: int) -> Assignment | None:
        """The piece that is next, if any; nothing is passed over for ever."""
        if not self._ready:
            return None
        chosen, since = next(iter(self._ready.values()))
        if self._given - since < PASSED_OVER * max(1, lanes):
            chosen = self._best()
        return self._take(chosen)

    def fellows(self, assignment: Assignment, most: int, idle: int) -> list[Assignment]:
        """Take what can be trained in lockstep with it: at most `most` pieces, and its share where several lanes are
        idle."""
        company = assignment.company
        fitting = [other for other, _ in self._ready.values() if company and other.company == company]
        share = math.ceil((len(fitting) + 1) / idle) - 1
        return [self._take(other) for other in fitting[: min(most, share)]]

    def _take(self, chosen: Assignment) -> Assignment:
        del self._ready[chosen.ticket]
        chosen.want.queued.discard(chosen.ticket)
        self._given += 1
        return chosen

    def _best(self) -> Assignment:
        while True:
            rank, ticket = heapq.heappop(self._heap)
            if ticket not in self._ready:  # it had been put in anew, and is gone
                continue
            assignment, _ = self._ready[ticket]
            if (now := _rank(assignment)) <= rank:
                return assignment
            heapq.heappush(self._heap, (now, ticket))  # somebody does not wait for it any more


def probe_key(run: Run, step: int, spec: ProbeSpec) -> str:
    """The name of a probe's record: what was probed, and how."""
    return history.key_of({"checkpoint": history.key(run, step), "probe": spec.described()})


def _rank(assignment: Assignment) -> tuple[int, int]:
    """What several wait for opens work; a probe lets a trial decide; then whoever has the longest way before it, as the
    last of those ends the sweep."""
    want = assignment.want
    opens = want.teaches or want.waiters > 1
    kind = 0 if opens else {"probe": 1, "train": 2, "replay": 3}[assignment.kind]
    return (kind, assignment.begin - assignment.end - want.ahead)
