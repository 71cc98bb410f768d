"""Tasks: what the worker groups are given to do. And how a task can end other than well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.space.launch import Launch
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.leases import Lease
from trainables.config import BATCH_FIELDS, ProbeSpec, Run

Kind = Literal["train", "probe", "replay"]


class TaskFailed(Exception):
    """The task cannot be done, and repeating it would not help. The message is for people."""


class RetriesExhausted(TaskFailed):
    """The task was tried often enough here; another driver may try it once more."""


class ExecutionStopped(TaskFailed):
    """No task can be done any more, for a reason that lies outside the task."""


class InputDamaged(Exception):
    """A checkpoint that the task builds on is damaged or gone. The caller asks again, and it is trained again."""


class ClaimedElsewhere(Exception):
    """Another driver worked on the task and no longer does. The caller asks again."""


@dataclass
class Demand:
    """How much a checkpoint or probe matters, which decides when the tasks for it are given out.

    Attributes:
        waiters: how many callers wait for it.
        ahead: the most steps that a caller's run still has before it after this one.
        teaches: whether it is wanted as a teacher.
        queued: the tickets of the tasks for it that are ready.
    """

    waiters: int = 0
    ahead: int = 0
    teaches: bool = False
    queued: set[int] = field(default_factory=set)


@dataclass
class Task:
    """What one worker group does at a time: train `run` from step `begin` to step `end`, probe the checkpoint at `end`,
    or replay the training from `begin` to `end` to compare the bits.

    Attributes:
        owner: the trial that asked first.
        is_teacher: whether it was asked for as a teacher rather than as a trial's own run.
        ticket: its number, in the order of submission; set by `Pool.submit`.
        attempts: how often it has been given out.
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
        taught = history.key(teacher.run, teacher.step), teacher.weights, teacher.precision
        batch = tuple(getattr(run, name) for name in sorted(BATCH_FIELDS))
        return self.begin, self.end, run.backbone, run.precision, batch, taught

    @property
    def lease(self) -> str:
        """The name of the lease on it. A training's lease is named after the next step, so that two drivers that would
        train the same step meet in the same name, wherever each of them stops."""
        if self.kind == "train":
            return history.key(self.run, self.begin + 1)
        name = history.key(self.run, self.end) if self.probe is None else probe_key(self.run, self.end, self.probe)
        return f"{self.kind}-{name}"

    def overlaps(self, lease: Lease) -> bool:
        """Whether another driver's lease is on a training that has steps in common with this one."""
        facts = lease.facts
        if self.kind != "train" or facts.kind != "train" or facts.begin is None or facts.end is None or not facts.run:
            return False
        begin = max(self.begin, facts.begin)
        if begin >= min(self.end, facts.end):
            return False
        try:
            theirs = history.key(Run.model_validate_json(facts.run), begin + 1)
        except (LookupError, ValueError):  # of a data set or an encoder that this machine lacks, or another version's
            return False
        return theirs == history.key(self.run, begin + 1)

    def __str__(self) -> str:
        return describe([self])


def describe(tasks: Sequence[Task]) -> str:
    """One task, or a cohort, for people: `trials 0, 3 from step 0 to 10`."""
    task, owners = tasks[0], ", ".join(str(task.owner) for task in tasks)
    subject = f"trials {owners}" if len(tasks) > 1 else "a teacher" if task.is_teacher else f"trial {owners}"
    if task.kind == "probe":
        return f"the probe of {subject} at step {task.end}"
    if task.kind == "replay":
        return f"the replay of steps {task.begin} to {task.end}"
    return f"{subject} from step {task.begin} to {task.end}"


@dataclass(frozen=True)
class LaneConfig:
    """What the processes of a worker group need to know.

    Attributes:
        storage, mark: the store's URI, and the mark by which it is recognised.
        session: identifies the driver.
        actor: the handle of its `DispatcherActor`.
        reference: a data set, and a probe that compares with its statistics; they are computed while the group is idle.
    """

    lane: int
    storage: str
    mark: str | None
    session: str
    launch: Launch
    actor: Any
    reference: tuple[str, ProbeSpec]
