"""Which checkpoints of a store are still worth their bytes, and what it would cost to make the others again.

Kept in any case: what an unfinished trial goes on from and looks up to, the best of each study with their teachers, and
what is young. Kept while there is room: where ended trials stopped, so that they can be resumed or given a longer
budget, their teachers, and what no study here mentions. The rest lies on the way between those.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.space import runs
from raysweep.store import history
from raysweep.store.store import Store, StoredCheckpoint
from raysweep.study.journal import studies
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from trainables.config import Run

YOUNG_S = 3600.0  # a driver that is at work may be about to build on what is younger
GIB = 2**30

NEEDED = (
    "an unfinished trial goes on from it",
    "it teaches an unfinished trial",
    "among the best",
    "it taught the best",
)
ROOM = ("an ended trial stopped here", "it taught an ended trial", "no study here mentions it")
PASSED = "passed on the way"


@dataclass
class Kept:
    """A checkpoint, and the best reason there is to keep it."""

    found: StoredCheckpoint
    gib: float
    age_s: float
    reason: str

    @property
    def again_s(self) -> float:
        """Device-seconds to make it again from the checkpoint before it, in the time that it took."""
        return float(self.found.manifest.get("seconds", 0.0)) * int(self.found.manifest.get("workers", 1))


@dataclass
class Survey:
    """All of a store: what is kept, what is to be freed, and torn remains that nobody can use."""

    kept: list[Kept] = field(default_factory=list)
    freed: list[Kept] = field(default_factory=list)
    remains: dict[str, int] = field(default_factory=dict)  # places and their bytes

    @property
    def kept_gib(self) -> float:
        return sum(each.gib for each in self.kept)

    @property
    def freed_gib(self) -> float:
        return sum(each.gib for each in self.freed) + sum(self.remains.values()) / GIB

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "kept": _counts(self.kept),
            "freed": _counts(self.freed),
            "remains": {"files": len(self.remains), "gib": sum(self.remains.values()) / GIB},
            "kept_gib": self.kept_gib,
            "freed_gib": self.freed_gib,
            "again_device_hours": sum(each.again_s for each in self.freed) / 3600,
        }


def survey(store: Store, keep_best: int = 3, budget_gib: float = math.inf, young_s: float = YOUNG_S) -> Survey:
    """Look at everything in `store` and say what would go; nothing is deleted.

    Args:
        keep_best: how many of each study's complete trials count as its best.
        budget_gib: beyond it, what is kept while there is room goes too: what is cheapest to make again first.
        young_s: what is younger stays.

    Raises:
        LookupError: a study is about data that this machine lacks, so that its checkpoints cannot be told.
    """
    published = {found.key: found for found in store.published()}
    reasons = _reasons(store, published, keep_best)
    ages: dict[str, float] = {}
    sizes: Counter[str] = Counter()
    remains: dict[str, int] = {}
    now = time.time()
    for place in ("checkpoints", "aside", "shards"):
        for entry in store.entries(place, recursive=True):
            if not entry.is_file:
                continue
            name = entry.path.removeprefix(store.root + "/")
            parts = name.split("/")
            age = now - entry.mtime.timestamp()
            key = parts[2] if place == "checkpoints" and len(parts) > 3 else ""
            listed = key in published and "/".join(parts[3:]) in {"manifest.json", *published[key].manifest["files"]}
            if listed:
                sizes[key] += entry.size
                ages[key] = min(age, ages.get(key, math.inf))
            elif age >= young_s:
                remains[name] = entry.size
    seen = Survey(remains=remains)
    for key, found in published.items():
        age = ages.get(key, 0.0)
        each = Kept(found, sizes[key] / GIB, age, reasons.get(key, ROOM[2]))
        if each.reason not in NEEDED and age < young_s:
            each.reason = "young"
        (seen.freed if each.reason == PASSED else seen.kept).append(each)
    room = [each for each in seen.kept if each.reason in ROOM]
    for each in sorted(room, key=lambda each: each.again_s / max(each.gib, 1e-9)):
        if seen.kept_gib <= budget_gib:
            break
        seen.kept.remove(each)
        seen.freed.append(each)
    return seen


def carry_out(store: Store, seen: Survey) -> None:
    """Delete what a survey says."""
    for each in seen.freed:
        store.free(each.found)
    for place in seen.remains:
        store.delete(place)


def _reasons(store: Store, published: dict[str, StoredCheckpoint], keep_best: int) -> dict[str, str]:
    """The best reason to keep each checkpoint that some study mentions."""
    steps = sorted({found.step for found in published.values()})
    order = [*NEEDED, *ROOM, PASSED]
    reasons: dict[str, str] = {}

    def note(key: str, reason: str) -> None:
        if key not in reasons or order.index(reason) < order.index(reasons[key]):
            reasons[key] = reason

    for name in studies(store):
        study = StudyState.reopen(store, name)
        complete = [trial for trial in study.distinct if trial.state == "COMPLETE"]
        best = sorted(complete, key=lambda trial: trial.last(study.metric) or math.inf)[:keep_best]
        for trial in study.distinct:
            if trial.state == "UNAVAILABLE":
                continue
            run = study.run(trial)
            last, teaches = _why(trial, best)
            way = _way(run, steps if not trial.ended else [s for s in steps if s <= trial.step], published)
            wanted = [(way, last, _open_rungs(study, trial))]
            wanted += [
                (_way(t.run, [s for s in steps if s <= t.step], published), teaches, []) for t in runs.teachers(run)
            ]
            for keys, reason, also in wanted:
                for key in keys[:-1]:
                    note(key, reason if published[key].step in also else PASSED)
                for key in keys[-1:]:
                    note(key, reason)
    return reasons


def _why(trial: TrialState, best: Sequence[TrialState]) -> tuple[str, str]:
    """Why a trial's last checkpoint is kept, and why its teacher's."""
    if not trial.ended:
        return NEEDED[0], NEEDED[1]
    return (NEEDED[2], NEEDED[3]) if trial in best else (ROOM[0], ROOM[1])


def _open_rungs(study: StudyState, trial: TrialState) -> list[int]:
    """Where an unfinished trial is still to be probed."""
    return [] if trial.ended else [step for step in study.rungs(trial) if step not in trial.probes]


def _way(run: Run, steps: Sequence[int], published: dict[str, StoredCheckpoint]) -> list[str]:
    """The published checkpoints on a run's way, in order."""
    keys = (history.key(run, step) for step in steps if step <= run.steps)
    return [key for key in keys if key in published]


def _counts(each: Sequence[Kept]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for one in each:
        counts = found.setdefault(one.reason, {"checkpoints": 0, "gib": 0.0})
        counts["checkpoints"] += 1
        counts["gib"] += one.gib
    return found


def listed(seen: Survey) -> Iterator[tuple[Kept, bool]]:
    """All checkpoints by step, with whether they stay."""
    both = [(each, True) for each in seen.kept] + [(each, False) for each in seen.freed]
    yield from sorted(both, key=lambda one: (one[0].found.step, one[0].found.key))
