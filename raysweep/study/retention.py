"""Which checkpoints of a store to keep, and what it would cost to train the others again.

Always kept: checkpoints that unfinished trials start from or learn from; those of each study's best trials and of their
teachers; and young ones. Kept while the budget allows: the last checkpoints of ended trials, so that these trials can
be continued with a longer budget; their teachers; and checkpoints that no study in the store mentions. All others are
intermediate checkpoints of these runs and are freed.
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

YOUNG_S = 3600.0  # a running driver may be about to use a checkpoint younger than this
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
class Verdict:
    """A checkpoint, and the best reason to keep it."""

    checkpoint: StoredCheckpoint
    gib: float
    age_s: float
    reason: str

    @property
    def again_s(self) -> float:
        """Device-seconds to train it again from the previous checkpoint: as many as the first time."""
        return self.checkpoint.manifest.training.device_seconds


@dataclass
class Survey:
    """The checkpoints of a store: those that are kept, those to be freed, and files that belong to none.

    Attributes:
        remains: sizes in bytes, by path, of files that nothing refers to: torn commits, damaged checkpoints, old
            shards.
    """

    kept: list[Verdict] = field(default_factory=list)
    freed: list[Verdict] = field(default_factory=list)
    remains: dict[str, int] = field(default_factory=dict)

    @property
    def kept_gib(self) -> float:
        return sum(verdict.gib for verdict in self.kept)

    @property
    def freed_gib(self) -> float:
        return sum(verdict.gib for verdict in self.freed) + sum(self.remains.values()) / GIB

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "kept": _counts(self.kept),
            "freed": _counts(self.freed),
            "remains": {"files": len(self.remains), "gib": sum(self.remains.values()) / GIB},
            "kept_gib": self.kept_gib,
            "freed_gib": self.freed_gib,
            "again_device_hours": sum(verdict.again_s for verdict in self.freed) / 3600,
        }


def survey(store: Store, keep_best: int = 3, budget_gib: float = math.inf, young_s: float = YOUNG_S) -> Survey:
    """Decide which checkpoints of `store` would be freed. Nothing is deleted.

    Args:
        keep_best: how many of each study's complete trials count as its best.
        budget_gib: beyond this size, checkpoints that are kept only while the budget allows are freed too, those that
            are cheapest to train again first.
        young_s: checkpoints younger than this are kept.

    Raises:
        LookupError: a study uses data that this machine lacks, so that the keys of its checkpoints are unknown.
    """
    checkpoints = {checkpoint.key: checkpoint for checkpoint in store.checkpoints()}
    reasons = _reasons(store, checkpoints, keep_best)
    ages: dict[str, float] = {}
    sizes: Counter[str] = Counter()
    result = Survey()
    now = time.time()
    for folder in ("checkpoints", "aside", "shards"):
        for entry in store.files.walk(folder):
            parts = entry.path.split("/")
            age = now - entry.modified
            key = parts[2] if folder == "checkpoints" and len(parts) > 3 else ""
            name = "/".join(parts[3:])
            if key in checkpoints and (name == "manifest.json" or name in checkpoints[key].manifest.files):
                sizes[key] += entry.bytes
                ages[key] = min(age, ages.get(key, math.inf))
            elif age >= young_s:
                result.remains[entry.path] = entry.bytes
    for key, checkpoint in checkpoints.items():
        age = ages.get(key, 0.0)
        verdict = Verdict(checkpoint, sizes[key] / GIB, age, reasons.get(key, ROOM[2]))
        if verdict.reason not in NEEDED and age < young_s:
            verdict.reason = "young"
        (result.freed if verdict.reason == PASSED else result.kept).append(verdict)
    optional = [verdict for verdict in result.kept if verdict.reason in ROOM]
    for verdict in sorted(optional, key=lambda verdict: verdict.again_s / max(verdict.gib, 1e-9)):
        if result.kept_gib <= budget_gib:
            break
        result.kept.remove(verdict)
        result.freed.append(verdict)
    return result


def carry_out(store: Store, result: Survey) -> None:
    """Delete what a survey has found to be freed."""
    for verdict in result.freed:
        store.free(verdict.checkpoint)
    for path in result.remains:
        store.files.delete(path)


def _reasons(store: Store, checkpoints: dict[str, StoredCheckpoint], keep_best: int) -> dict[str, str]:
    """The best reason to keep each checkpoint that some study mentions, by its key."""
    steps = sorted({checkpoint.step for checkpoint in checkpoints.values()})
    order = [*NEEDED, *ROOM, PASSED]
    reasons: dict[str, str] = {}

    def note(key: str, reason: str) -> None:
        if key not in reasons or order.index(reason) < order.index(reasons[key]):
            reasons[key] = reason

    def note_run(run: Run, last: float, reason: str, also: Sequence[int] = ()) -> None:
        """Note `reason` for the last of `run`'s checkpoints up to step `last`, and for those at the steps `also`. The
        others are noted as passed."""
        passed = _committed(run, [step for step in steps if step <= last], checkpoints)
        for key in passed[:-1]:
            note(key, reason if checkpoints[key].step in also else PASSED)
        for key in passed[-1:]:
            note(key, reason)

    for name in studies(store.files):
        study = StudyState.reopen(store, name)
        complete = [trial for trial in study.distinct if trial.state == "COMPLETE"]
        best = sorted(complete, key=lambda trial: trial.last(study.metric) or math.inf)[:keep_best]
        for trial in study.distinct:
            if trial.state == "UNAVAILABLE":
                continue
            run = study.run(trial)
            own, teaches = _why(trial, best)
            note_run(run, trial.step if trial.ended else math.inf, own, _open_rungs(study, trial))
            for teacher in runs.teachers(run):
                note_run(teacher.run, teacher.step, teaches)
    return reasons


def _why(trial: TrialState, best: Sequence[TrialState]) -> tuple[str, str]:
    """Why the last checkpoint of a trial is kept, and why its teacher's is."""
    if not trial.ended:
        return NEEDED[0], NEEDED[1]
    return (NEEDED[2], NEEDED[3]) if trial in best else (ROOM[0], ROOM[1])


def _open_rungs(study: StudyState, trial: TrialState) -> list[int]:
    """The steps at which an unfinished trial is still to be probed."""
    return [] if trial.ended else [step for step in study.rungs(trial) if step not in trial.probes]


def _committed(run: Run, steps: Sequence[int], checkpoints: dict[str, StoredCheckpoint]) -> list[str]:
    """The keys of a run's committed checkpoints at these steps, in order."""
    keys = (history.key(run, step) for step in steps if step <= run.steps)
    return [key for key in keys if key in checkpoints]


def _counts(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    """How many checkpoints and GiB there are for each reason."""
    by_reason: dict[str, dict[str, float]] = {}
    for verdict in verdicts:
        counts = by_reason.setdefault(verdict.reason, {"checkpoints": 0, "gib": 0.0})
        counts["checkpoints"] += 1
        counts["gib"] += verdict.gib
    return by_reason


def listed(result: Survey) -> Iterator[tuple[Verdict, bool]]:
    """All checkpoints by step, each with whether it is kept."""
    verdicts = [(verdict, True) for verdict in result.kept] + [(verdict, False) for verdict in result.freed]
    yield from sorted(verdicts, key=lambda item: (item[0].checkpoint.step, item[0].checkpoint.key))
