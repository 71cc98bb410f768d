"""Pieces of work for lanes, and which of them comes first."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Literal

from raysweep import history
from raysweep.leases import Lease
from trainables.spec import ProbeSpec, Run

PASSED_OVER = 16  # times per lane that work may be passed over before it goes first whatever its rank

Kind = Literal["train", "probe", "replay"]


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
        return f"{whose} from step {self.begin} to {self.end}"


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
    return history.key_of({"checkpoint": history.key(run, step), "probe": spec.model_dump(mode="json")})


def _rank(assignment: Assignment) -> tuple[int, int]:
    """What several wait for opens work; a probe lets a trial decide; then whoever has the longest way before it, as the
    last of those ends the sweep."""
    want = assignment.want
    opens = want.teaches or want.waiters > 1
    kind = 0 if opens else {"probe": 1, "train": 2, "replay": 3}[assignment.kind]
    return (kind, assignment.begin - assignment.end - want.ahead)
