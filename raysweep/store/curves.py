"""What was measured on the way of a run, as points in steps and in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.store.store import Store
from trainables.config import Run


@dataclass(frozen=True)
class Point:
    """One number. `time` is in seconds since 1970; 0 where an earlier version did not note it."""

    name: str
    value: float
    step: int
    time: float


def training(store: Store, run: Run, step: int, after: int = 0) -> list[Point]:
    """The training curve from step `after` to `step`: loss terms and gradient norm, and what each stretch took. It is
    put together from all stretches that led there, whoever trained them, so it is whole for a fork too."""
    points = []
    for manifest in store.way(run, step):
        if manifest["step"] > after:
            points += _segment(manifest)
    return points


def _segment(manifest: Mapping[str, Any]) -> list[Point]:
    begin, end, seconds = manifest["from_step"], manifest["step"], manifest["seconds"]
    ended = manifest.get("time", 0.0)

    def when(step: int) -> float:
        return ended - seconds * (end - step) / (end - begin) if ended else 0.0

    points = [
        Point(name, value, int(point["step"]), when(int(point["step"])))
        for point in manifest["curve"]
        for name, value in point.items()
        if name != "step"
    ]
    if seconds:
        points.append(Point("steps_per_s", (end - begin) / seconds, end, ended))
    if "memory_mib" in manifest:
        points.append(Point("memory_mib", manifest["memory_mib"], end, ended))
    return points
