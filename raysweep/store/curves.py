"""The curves that were measured while a run was trained: points with their step and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raysweep.store.manifest import Manifest
from raysweep.store.store import Store
from trainables.config import Run


@dataclass(frozen=True)
class Point:
    """One measured number. `time` is in seconds since 1970; 0 where an earlier version did not record it."""

    name: str
    value: float
    step: int
    time: float


def training(store: Store, run: Run, step: int, after: int = 0) -> list[Point]:
    """The training curve of `run` after step `after` and up to `step`: loss terms, gradient norm, and the speed and
    memory of each segment. It includes segments that another run trained and this run shares."""
    return [point for manifest in store.segments(run, step) if manifest.step > after for point in _segment(manifest)]


def _segment(manifest: Manifest) -> Iterator[Point]:
    facts, end = manifest.training, manifest.step
    steps = end - facts.from_step

    def time_of(step: int) -> float:
        return facts.time - facts.seconds * (end - step) / steps if facts.time else 0.0

    for measured in facts.curve:
        step = int(measured["step"])
        yield from (Point(name, value, step, time_of(step)) for name, value in measured.items() if name != "step")
    if facts.seconds:
        yield Point("steps_per_s", steps / facts.seconds, end, facts.time)
    if facts.memory_mib is not None:
        yield Point("memory_mib", facts.memory_mib, end, facts.time)
