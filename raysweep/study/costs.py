"""The cost of each trial: the work that only this trial needed, and its share of the work that several trials needed.

Manifests and records say how many seconds the work took and how many workers did it; the product is the cost in
device-seconds. Nothing is charged twice: the charges of all trials add up to the cost of all checkpoints and probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raysweep.space import runs
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.store.manifest import Manifest
from raysweep.store.records import ProbeRecord
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState


@dataclass(frozen=True)
class Charge:
    """Device-seconds of one trial.

    Attributes:
        own: work that only this trial needed.
        shared: its share of work that several trials needed.
        probes: the part of `own` and `shared` that was spent on probes.
        alone: the cost without sharing: all work that the trial needed, even if other trials needed it too.
    """

    own: float = 0.0
    shared: float = 0.0
    probes: float = 0.0
    alone: float = 0.0

    @property
    def spent(self) -> float:
        """`own` and `shared` together."""
        return self.own + self.shared

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            self.own + other.own,
            self.shared + other.shared,
            self.probes + other.probes,
            self.alone + other.alone,
        )

    def as_dict(self) -> dict[str, float]:
        """The object that `--json` prints for it."""
        return {
            "own_device_s": self.own,
            "shared_device_s": self.shared,
            "of_it_probes_device_s": self.probes,
            "without_sharing_device_s": self.alone,
        }


Payer = tuple[str, int]  # a study's name and a trial's number
WorkKey = tuple[bool, str]  # whether the work is a probe, and its key
Manifests = dict[str, list[Manifest]]  # those on the way to a checkpoint, by the checkpoint's key


def charges(studies: Iterable[StudyState]) -> dict[Payer, Charge]:
    """The cost of each trial of these studies. Work that several trials need is charged to them in equal shares."""
    users: dict[WorkKey, set[Payer]] = defaultdict(set)
    seconds: dict[WorkKey, float] = {}
    charged: dict[Payer, Charge] = {}
    teachers: Manifests = {}
    for study in studies:
        for trial in study.trials:
            payer = (study.space.id, trial.number)
            charged[payer] = Charge()
            if trial.repeats is None and trial.state != "UNAVAILABLE":
                for is_probe, key, cost in _work(study, trial, teachers):
                    users[is_probe, key].add(payer)
                    seconds[is_probe, key] = cost
    for (is_probe, key), payers in users.items():
        whole = seconds[is_probe, key]
        share = whole / len(payers)
        own, shared = (share, 0.0) if len(payers) == 1 else (0.0, share)
        for payer in payers:
            charged[payer] += Charge(own, shared, share * is_probe, whole)
    return charged


def _work(study: StudyState, trial: TrialState, teachers: Manifests) -> Iterator[tuple[bool, str, float]]:
    """All work that a trial needed, as (whether it is a probe, its key, device-seconds). `teachers` caches the
    manifests of teachers, so that each is read once."""
    run, probe = study.run(trial), study.probe(trial)
    ahead = [] if trial.ended else [step for step in study.rungs(trial) if study.store.find(run, step)]
    step = max([trial.step, *ahead])
    manifests = study.store.segments(run, step) if step else []
    for teacher in runs.teachers(run) if step else []:
        key = history.key(teacher.run, teacher.step)
        if key not in teachers:
            teachers[key] = study.store.segments(teacher.run, teacher.step)
        manifests += teachers[key]
    yield from ((False, manifest.key, manifest.training.device_seconds) for manifest in manifests)
    keys = [probe_key(run, rung, probe) for rung in trial.probes]
    for recheck in trial.rechecks.values():
        compared = (trial, study.trials[recheck.rival])
        keys += [probe_key(study.run(other), recheck.step, study.probe(other, recheck)) for other in compared]
    for key in keys:
        if record := study.store.peek(ProbeRecord, key):
            yield True, key, record.device_seconds
