"""Records: small facts in a store, each under a key. Each kind of record has a class.

On disk a record is one flat JSON object. Its keys and their order never change. Only this module supplies defaults for
keys that an earlier version did not write: those of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

from raysweep.store.manifest import Platform
from trainables.redaction import public_data


class Record(Protocol):
    """What all kinds of records have. `KIND` is the name of their folder."""

    KIND: ClassVar[str]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self: ...
    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ProbeRecord:
    """What a probe measured. Its key names the checkpoint and the probe (`raysweep.store.history.probe_key`).

    Attributes:
        metrics: values and their standard errors, by name.
        key: the record's own key.
        checkpoint: the key of the checkpoint that was probed.
        step: of that checkpoint.
        probe: the probe's spec, as plain data.
        seconds: wall time.
    """

    KIND: ClassVar[str] = "probes"

    metrics: dict[str, float]
    key: str = ""
    checkpoint: str = ""
    step: int = 0
    probe: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    platform: Platform = Platform()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ProbeRecord:
        """The record that was written, by this version or an earlier one."""
        return cls(
            metrics=content["metrics"],
            key=content.get("key", ""),
            checkpoint=content.get("checkpoint", ""),
            step=content.get("step", 0),
            probe=content.get("probe", {}),
            seconds=float(content.get("seconds", 0.0)),
            platform=Platform.from_dict(content),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it stands on disk."""
        identity = {"key": self.key, "checkpoint": self.checkpoint, "step": self.step, "probe": self.probe}
        return identity | {"metrics": self.metrics, "seconds": self.seconds} | self.platform.as_dict()

    @property
    def device_seconds(self) -> float:
        """The device-seconds that the probe cost."""
        return self.platform.device_seconds(self.seconds)


@dataclass(frozen=True)
class Certificate:
    """Whether training past the previous checkpoint, without a stop there, gave the same bits.

    Attributes:
        checkpoint: its key, which is the record's key too.
        step: of that checkpoint.
        from_step: where the replay began.
        exact: whether the files are equal; None: they were not compared, and `reason` says why.
        files: SHA-256 (hex) of the replay's files by name; None where nothing was compared.
        seconds: wall time of the replay; None where nothing was compared.
    """

    KIND: ClassVar[str] = "certificates"

    checkpoint: str
    step: int
    from_step: int
    platform: Platform
    exact: bool | None
    reason: str = ""
    files: Mapping[str, str] | None = None
    seconds: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """The record that was written."""
        return cls(
            checkpoint=content["checkpoint"],
            step=content["step"],
            from_step=content["from_step"],
            platform=Platform.from_dict(content),
            exact=content["exact"],
            reason=content["reason"],
            files=content.get("files"),
            seconds=content.get("seconds"),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it stands on disk."""
        content = {"checkpoint": self.checkpoint, "step": self.step, "from_step": self.from_step}
        content |= {**self.platform.as_dict(), "exact": self.exact, "reason": self.reason}
        return content if self.files is None else content | {"files": self.files, "seconds": self.seconds}


@dataclass(frozen=True)
class FailureRecord:
    """A training whose loss or gradients were not finite. Its key is the name of the lease on the segment.

    Attributes:
        step: the step that failed.
        terms: the loss terms at that step by name, some of them not finite.
        before: the terms at the step before it.
        from_step: where the segment began.
        run: as plain data. On disk it is without secrets, such as credentials in the place of its data.
    """

    KIND: ClassVar[str] = "failures"

    step: int
    terms: Mapping[str, float]
    before: Mapping[str, float]
    from_step: int
    run: Mapping[str, Any]
    platform: Platform

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FailureRecord:
        """The record that was written."""
        own = {name: content[name] for name in ("step", "terms", "before", "from_step", "run")}
        return cls(**own, platform=Platform.from_dict(content))

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it stands on disk."""
        own = {name: value for name, value in vars(self).items() if name != "platform"}
        return public_data(own) | self.platform.as_dict()
