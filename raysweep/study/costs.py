"""What each trial has cost: work that it alone needed, and its share of what several needed. Nothing is charged twice.

The time is what the workers took, as manifests and records say, times their number; so the charges of all trials
together are the time of everything that led to their checkpoints and probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from raysweep.space import runs
from raysweep.store import history
from raysweep.store.history import probe_key
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState


@dataclass
class Charge:
    """Device-seconds of one trial. `probes` are part of the first two; `alone` is what it would have been without
    sharing: all that is behind it, whoever else needed it too."""

    own: float = 0.0
    shared: float = 0.0
    probes: float = 0.0
    alone: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """As plain data."""
        return {
            "own_device_s": self.own,
            "shared_device_s": self.shared,
            "of_it_probes_device_s": self.probes,
            "without_sharing_device_s": self.alone,
        }


Payer = tuple[str, int]  # a study's name and a trial's number
Ways = dict[str, list[dict[str, Any]]]  # the manifests that led to a checkpoint, by its key


def charges(studies: Iterable[StudyState]) -> dict[Payer, Charge]:
    """What each trial of these studies is charged, work that several need in equal shares."""
    users: dict[tuple[bool, str], set[Payer]] = defaultdict(set)  # by whether it is a probe, and its key
    seconds: dict[tuple[bool, str], float] = {}
    found: dict[Payer, Charge] = {}
    ways: Ways = {}
    for study in studies:
        for trial in study.trials:
            payer = (study.space.id, trial.number)
            found[payer] = Charge()
            if trial.repeats is None and trial.state != "UNAVAILABLE":
                for is_probe, key, facts in _behind(study, trial, ways):
                    users[is_probe, key].add(payer)
                    seconds[is_probe, key] = float(facts.get("seconds", 0.0)) * int(facts.get("workers", 1))
    for (is_probe, key), payers in users.items():
        share = seconds[is_probe, key] / len(payers)
        for payer in payers:
            if len(payers) == 1:
                found[payer].own += share
            else:
                found[payer].shared += share
            found[payer].probes += share * is_probe
            found[payer].alone += seconds[is_probe, key]
    return found


def _behind(study: StudyState, trial: TrialState, ways: Ways) -> Iterator[tuple[bool, str, dict[str, Any]]]:
    """All that was computed for a trial, whoever asked for it first. `ways` are those of teachers, read once."""
    run, probe = study.run(trial), study.probe(trial)
    ahead = [] if trial.ended else [step for step in study.rungs(trial) if study.store.find(run, step)]
    step = max([trial.step, *ahead])
    behind = study.store.way(run, step) if step else []
    for teacher in runs.teachers(run) if step else []:
        key = history.key(teacher.run, teacher.step)
        if key not in ways:
            ways[key] = study.store.way(teacher.run, teacher.step)
        behind += ways[key]
    yield from ((False, manifest["key"], manifest) for manifest in behind)
    keys = [probe_key(run, rung, probe) for rung in trial.probes]
    for recheck in trial.rechecks.values():
        both = (trial, study.trials[recheck.rival])
        keys += [probe_key(study.run(one), recheck.step, study.probe(one, recheck)) for one in both]
    for key in keys:
        if noted := study.store.noted("probes", key):
            yield True, key, noted
