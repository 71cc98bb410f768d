"""Tasks: the work that the dispatcher gives to lanes. Also the errors with which a task can end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from raysweep.space.launch import Launch
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.leases import Lease
from trainables.config import BATCH_FIELDS, ProbeSpec, Run

Kind = Literal["train", "probe", "replay"]


class TaskFailed(Exception):
    """The task cannot be done, and repeating it would not help. The message is for the user."""


class RetriesExhausted(TaskFailed):
    """This driver has tried the task too often. The next driver may try it again."""


class ExecutionStopped(TaskFailed):
    """No task can be done any more, for a reason that lies outside the task."""


class InputDamaged(Exception):
    """A checkpoint that the task starts from or learns from is damaged or missing. The caller asks for the checkpoint
    again, so that it is trained again."""


class TaskOutdated(Exception):
    """The task no longer is what has to be done: a run needs a checkpoint inside its segment, or another task, of this
    driver or of another, has done a part of it or all of it. The caller looks at the store again."""


class Tally(NamedTuple):
    """How many optimizer steps a worker group has trained since its processes started.

    Attributes:
        workers: identifies the processes.
    """

    workers: str
    steps: int


@dataclass
class Demand:
    """The need for a checkpoint or probe, which decides when the tasks for it are given out.

    Attributes:
        waiters: how many callers wait for it.
        ahead: how many steps a caller's run still has to train afterwards; the most of all callers.
        teaches: whether it is needed as a teacher.
        queued: the tickets of the ready tasks for it.
    """

    waiters: int = 0
    ahead: int = 0
    teaches: bool = False
    queued: set[int] = field(default_factory=set)


@dataclass
class Task:
    """What a lane does at a time: train `run` from step `begin` to step `end`, probe the checkpoint at `end`,
    or replay the training from `begin` to `end` to compare the bits.

    Attributes:
        owner: the name of the trial that asked for it first.
        is_teacher: whether it trains a teacher rather than a trial's own run.
        looked: the pool's mark from before its callers looked into the store.
        ticket: its number in the order of submission, set by `Pool.submit`.
        attempts: how often it was given to a lane.
        micro_batch: images that a worker puts through the network at once; None: the worker's whole share.
        solo: never trained in a cohort again, because an attempt in one went wrong.
    """

    kind: Kind
    run: Run
    begin: int
    end: int
    demand: Demand
    probe: ProbeSpec | None = None
    owner: str | None = None
    is_teacher: bool = False
    looked: int = -1
    ticket: int = -1
    attempts: int = 0
    micro_batch: int | None = None
    solo: bool = False

    @property
    def cohort_key(self) -> tuple[Any, ...] | None:
        """Tasks with equal keys can be trained in lockstep, as a cohort: the same steps, the same batches, and one
        teacher. None: this task is trained by itself."""
        if self.kind != "train" or self.solo:
            return None
        run, teacher = self.run, self.run.phase_after(self.begin).teacher
        if teacher is None:
            return None
        identity = history.key(teacher.run, teacher.step), teacher.weights, teacher.precision
        batch = tuple(getattr(run, name) for name in sorted(BATCH_FIELDS))
        return self.begin, self.end, run.backbone, run.precision, batch, identity

    @cached_property
    def trunk(self) -> str:
        """The trunk of its segment, which lies in one phase of its run. See `raysweep.space.milestones`."""
        return history.trunk(self.run, self.begin + 1)

    def shares_steps(self, other: Task) -> bool:
        """Whether this segment and another task's have steps in common."""
        if self.kind != "train" or other.kind != "train":
            return False
        return max(self.begin, other.begin) < min(self.end, other.end) and self.trunk == other.trunk

    @cached_property
    def lease(self) -> str:
        """The name of the lease on the task. The lease on a segment is named after its first step: two drivers that
        would train the same step then compete for the same lease, even if their segments end at different steps."""
        return history.key(self.run, self.begin + 1) if self.kind == "train" else f"{self.kind}-{self.result}"

    @property
    def result(self) -> str:
        """The key of what the task puts into the store: a checkpoint, a probe's record, or a certificate."""
        return history.key(self.run, self.end) if self.probe is None else probe_key(self.run, self.end, self.probe)

    def overlaps(self, lease: Lease) -> bool:
        """Whether another driver's lease is on a segment that has steps in common with this task's."""
        if self.kind != "train" or lease.begin is None or lease.end is None:
            return False
        begin = max(self.begin, lease.begin)
        if begin >= min(self.end, lease.end) or lease.name != history.key(self.run, lease.begin + 1):
            return False
        if begin == lease.begin:
            return True
        try:  # the runs agree where the lease begins; they may part before this task begins
            other = Run.model_validate_json(lease.facts.run or "")
            return history.key(other, begin + 1) == history.key(self.run, begin + 1)
        except (LookupError, ValueError):  # data or an encoder that this machine lacks, or another version's run
            return False

    def __str__(self) -> str:
        return describe([self])


def describe(tasks: Sequence[Task]) -> str:
    """A task or a cohort in words, such as `trials 0, 3 from step 0 to 10`."""
    task, owners = tasks[0], ", ".join(str(task.owner) for task in tasks)
    subject = f"trials {owners}" if len(tasks) > 1 else "a teacher" if task.is_teacher else f"trial {owners}"
    if task.kind == "probe":
        return f"the probe of {subject} at step {task.end}"
    if task.kind == "replay":
        return f"the replay of steps {task.begin} to {task.end}"
    return f"{subject} from step {task.begin} to {task.end}"


@dataclass(frozen=True)
class LaneConfig:
    """What the processes of a lane need to know.

    Attributes:
        storage, mark: the store's URI, and the mark by which it is recognised.
        session: identifies the driver.
        actor: the handle of its `DispatcherActor`.
        reference: a data set, and a probe that compares samples with its statistics, which an idle lane computes.
    """

    lane: int
    storage: str
    mark: str | None
    session: str
    launch: Launch
    actor: Any
    reference: tuple[str, ProbeSpec]
