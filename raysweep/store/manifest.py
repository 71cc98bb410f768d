"""The manifest of a checkpoint: its files, its history, and what was measured while it was trained.

On disk a manifest is one flat JSON object. Its keys and their order never change. Only this module supplies defaults
for keys that an earlier version did not write: those of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.errors import UserError
from trainables.location import inside
from trainables.redaction import public


@dataclass(frozen=True)
class Platform:
    """The hardware and software that computed a result, on which its last bits may depend besides the history.

    Attributes:
        workers: ranks that shared the work.
        micro_batch: images that one worker puts through the network at once; None: its whole share of the batch.
        compiled: whether `torch.compile` was used; None where an earlier version did not record it.
        device: torch's device type, such as `cuda`.
        versions: of torch and Python.
    """

    workers: int = 1
    micro_batch: int | None = None
    compiled: bool | None = None
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Platform:
        """The platform that a manifest or a record names among its other keys."""
        return cls(
            workers=int(facts.get("workers", 1)),
            micro_batch=facts.get("micro_batch"),
            compiled=facts.get("compiled"),
            device=facts.get("device") or "",
            versions=facts.get("versions") or {},
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it stands on disk."""
        return dict(vars(self))

    def device_seconds(self, seconds: float) -> float:
        """The device-seconds of work that took all workers `seconds`."""
        return seconds * self.workers

    def differences(self, other: Platform) -> list[str]:
        """The names of the fields in which two platforms differ."""
        theirs = vars(other)
        return [name for name, value in vars(self).items() if theirs[name] != value]


@dataclass(frozen=True)
class DataFiles:
    """The data set that a checkpoint was trained on: its name, and SHA-256 (hex) by file name."""

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class TrainingFacts:
    """What was measured on the last segment of training before a checkpoint.

    Attributes:
        from_step: the step at which the segment began: 0, or an earlier checkpoint's.
        curve: points of the training curve, each with its `step`.
        seconds: wall time of the training steps.
        memory_mib: the most memory that a worker held, in MiB.
        taken: when the workers took the segment, in seconds since 1970.
        time: when the checkpoint was committed, in seconds since 1970; 0 where an earlier version did not record it.
        session: identifies the driver.
        between: whether the checkpoint lies inside a segment. It is kept, in case of a crash, until the next one is
            committed.
        cohort: how many runs were trained in lockstep.
    """

    from_step: int = 0
    curve: Sequence[Mapping[str, float]] = ()
    seconds: float = 0.0
    memory_mib: float | None = None
    taken: float = 0.0
    time: float = 0.0
    platform: Platform = Platform()
    session: str = ""
    between: bool = False
    cohort: int = 1
    data: DataFiles | None = None

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> TrainingFacts:
        """The facts in a manifest of this version or an earlier one."""
        data = facts.get("data")
        return cls(
            from_step=facts.get("from_step", 0),
            curve=facts.get("curve", ()),
            seconds=float(facts.get("seconds", 0.0)),
            memory_mib=facts.get("memory_mib"),
            taken=facts.get("taken", 0.0),
            time=facts.get("time", 0.0),
            platform=Platform.from_dict(facts),
            session=facts.get("session", ""),
            between=facts.get("between", False),
            cohort=facts.get("cohort", 1),
            data=DataFiles(data["name"], data["files"]) if data else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it stands on disk."""
        return {
            "from_step": self.from_step,
            "curve": list(self.curve),
            "seconds": self.seconds,
            "memory_mib": self.memory_mib,
            "taken": self.taken,
            "time": self.time,
            **self.platform.as_dict(),
            "session": self.session,
            "between": self.between,
            "cohort": self.cohort,
            "data": None if self.data is None else {"name": public(self.data.name), "files": self.data.files},
        }

    @property
    def device_seconds(self) -> float:
        """The device-seconds that the segment cost."""
        return self.platform.device_seconds(self.seconds)


@dataclass(frozen=True)
class FileFacts:
    """The size of a file in bytes, and its SHA-256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint.

    Attributes:
        key: names its history.
        step: optimizer steps from 0.
        files: by path below the checkpoint's folder.
        history: the canonical description of all that determines its weights (`raysweep.store.history`).
        training: what was measured on the segment that ends in it.
    """

    key: str
    step: int
    files: Mapping[str, FileFacts]
    history: dict[str, Any]
    training: TrainingFacts

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Manifest:
        """The manifest that was written, by this version or an earlier one.

        Raises:
            UserError: a file of it would lie outside the checkpoint's folder. Nobody but an attacker writes that.
        """
        try:
            files = {inside(name): FileFacts(file["bytes"], file["sha256"]) for name, file in content["files"].items()}
        except ValueError as error:
            raise UserError(f"the manifest of checkpoint {content['key'][:12]}: {error}; delete it") from None
        return cls(content["key"], content["step"], files, content["history"], TrainingFacts.from_dict(content))

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it stands on disk."""
        files = {name: vars(file) for name, file in self.files.items()}
        identity = {"key": self.key, "step": self.step, "files": files, "history": self.history}
        return identity | self.training.as_dict()

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256, in hex, by file name without folders: equal for checkpoints with equal bits."""
        return {name.rpartition("/")[2]: file.sha256 for name, file in self.files.items()}
