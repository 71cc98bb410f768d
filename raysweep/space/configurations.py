"""The configurations that a search space would propose, for plans and simulations."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from raysweep.space import domains, runs
from raysweep.space.domains import Point, PointKey, WrongDomain, point_key
from raysweep.space.space import Space
from trainables.config import ProbeSpec, Run, Trial
from trainables.redaction import public


@dataclass
class Configuration:
    """One point of a space, with everything that follows from it."""

    space: Space
    point: Point
    trial: Trial
    run: Run
    rungs: list[int]  # optimizer steps at which it is probed; the last is its end
    reference: float | None  # the FID that a paper reports for it
    probe: ProbeSpec

    @classmethod
    def at(cls, space: Space, point: Point, reference: float | None = None) -> Configuration:
        """The configuration at a point. Values that the point leaves out are the defaults.

        Raises:
            WrongDomain: a value lies outside its domain.
            pydantic.ValidationError: the trial is not legal.
        """
        trial, full = space.trial(point)
        return cls(space, full, trial, runs.student(space, trial), space.rungs(trial), reference, space.probe_of(trial))


def configurations(space: Space, notes: list[str]) -> Iterator[Configuration]:
    """The enqueued rows, then, for an exploration, random points in place of those that the sampler would propose.

    Args:
        notes: sentences about rows that are left out, and about random points, are appended to this list.
    """
    seen: set[PointKey] = set()
    outside = 0
    unavailable: Counter[str] = Counter()
    for row in space.rows:
        try:
            configuration = Configuration.at(space, row.set, row.fid)
        except WrongDomain:
            outside += 1
            continue
        if _add_if_new(configuration.point, seen):
            if reason := runs.unavailable(configuration.trial):
                unavailable[reason] += 1
            yield configuration
    trials = space.search.trials if space.search.mode == "explore" else 0
    rows, chance, misses = len(seen), random.Random(space.search.seed), 0
    most = domains.size(space.tree)
    while len(seen) < min(trials, most) and misses < 10_000:
        point = domains.random_point(space.tree, chance)
        misses = 0 if _add_if_new(point, seen) else misses + 1
        if not misses:
            yield Configuration.at(space, point)
    if len(seen) > rows:
        notes.append(f"{space.study}: {len(seen) - rows} random configurations stand for what TPE will propose")
    if outside:
        notes.append(f"{space.study}: {outside} rows lie outside the space and are left out")
    notes.extend(f"{space.study}: {count} rows cannot be run here: {public(why)}" for why, count in unavailable.items())


def _add_if_new(point: Point, seen: set[PointKey]) -> bool:
    """Add a point to `seen`. Returns whether it was not there yet."""
    before = len(seen)
    seen.add(point_key(point))
    return len(seen) > before
