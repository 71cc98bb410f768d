"""The state of a study: its trials, their metrics, and the decisions with their reasons.

The state is read from the journal. Every change is written to the journal first.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from raysweep.errors import UserError
from raysweep.retry import retry_storage
from raysweep.space import runs
from raysweep.space.configurations import Configuration
from raysweep.space.domains import Point, PointKey, WrongDomain, point_key
from raysweep.space.schedulers import STOPPING, Promotion
from raysweep.space.space import Space
from raysweep.store.history import probe_key
from raysweep.store.store import Store
from raysweep.study.comparison import difference
from raysweep.study.journal import Entry, Journal, opening, studies
from raysweep.study.rungs import Decision, Difference, Recheck, Rungs
from raysweep.study.trial import State, TrialState
from trainables.config import ProbeSpec, Run


class StudyState:
    """A study in a store. Every change is written to the journal, applied, and passed to `watchers`.

    Args:
        journal: the study's journal, which this driver has taken over; None to read the study.
        extends: for a new study, the names of the studies whose trials it continues.

    Attributes:
        trials: all trials, by number.
        distinct: the trials that do not repeat earlier ones.
        best: the complete trial with the lowest metric, the earliest of equal ones.
        watchers: functions that are called with each trial that has changed.
        now: the time of the last event, in the study's own time (`raysweep.study.ordering`).
        drivers: the environments of the drivers that worked on the study; equal successive ones are listed once.
        extends: the argument `extends` with which the study was created.
        opened_at: when the study was created, in seconds since 1970; 0 in journals of earlier versions.
    """

    def __init__(self, space: Space, store: Store, journal: Journal | None = None, extends: Sequence[str] = ()):
        self.space, self.store = space, store
        self.journal = journal or Journal(store.files, space.id)
        self.trials: list[TrialState] = []
        self.distinct: list[TrialState] = []
        self.best: TrialState | None = None
        self.watchers: list[Callable[[TrialState], None]] = []
        self._changed: dict[int, TrialState] = {}  # by number: the watchers have not been called with them yet
        self.now = 0
        self._rungs = Rungs(space.search.scheduler, len(space.rungs(space.trial({})[0])) - 1)
        self._configurations: dict[int, Configuration] = {}
        self._first: dict[PointKey, int] = {}  # the first trial of each configuration
        self._repeats: dict[int, list[int]] = {}  # the trials that repeat a trial
        self.drivers: list[dict[str, Any]] = []
        entries = self.journal.read() or [self._write("opened", space=space.resolved, extends=list(extends))]
        self.extends: list[str] = entries[0].get("extends", [])
        self.opened_at: float = entries[0].get("time", 0.0)
        for entry in entries[1:]:
            if entry["kind"] == "driven":
                self.drivers.append(entry["environment"])
            else:
                self._apply(entry)

    @classmethod
    def reopen(cls, store: Store, name: str) -> StudyState:
        """The study of that name, or the only one whose name begins with it, from its journal alone.

        Raises:
            UserError: there is none, or there are several.
        """
        known = studies(store.files)
        equal = [study for study in known if name in (study, study.rsplit("-", 2)[0])]  # or without profile and digest
        matches = equal or [study for study in known if study.startswith(name)]
        if len(matches) != 1:
            wrong = f"several studies begin with '{name}'" if matches else f"no study '{name}'"
            raise UserError(f"{wrong} in {store.uri}; there are: {', '.join(matches or known) or 'none'}")
        return cls(Space.reopen(opening(store.files, matches[0])["space"]), store)

    @cached_property
    def milestones(self) -> list[int]:
        """The steps at which runs commit checkpoints."""
        return runs.milestones(self.space)

    @property
    def metric(self) -> str:
        """The name of the metric that is minimised."""
        return self.space.probe.metric

    @property
    def explores(self) -> bool:
        """Whether a scheduler decides at the rungs, rather than every row being trained to its end."""
        return self.space.search.mode == "explore"

    def name(self, trial: TrialState) -> str:
        """A trial's name, which is unique among the studies of a sweep."""
        return f"{self.space.study}/{trial.number}"

    def configuration(self, trial: TrialState) -> Configuration:
        """The trial's configuration with everything that follows from it. Computed once."""
        if trial.number not in self._configurations:
            self._configurations[trial.number] = Configuration.at(self.space, trial.point)
        return self._configurations[trial.number]

    def run(self, trial: TrialState) -> Run:
        """The run that a trial trains."""
        return self.configuration(trial).run

    def probe(self, trial: TrialState, recheck: Recheck | None = None) -> ProbeSpec:
        """The probe of a trial's snapshots; with a recheck, the same probe with more samples."""
        spec = self.configuration(trial).probe
        return spec.model_copy(update={"samples": recheck.samples}) if recheck else spec

    def rungs(self, trial: TrialState) -> list[int]:
        """The steps at which a trial is probed, its end last."""
        steps = self.configuration(trial).rungs
        return self._rungs.probed_rungs(trial.number, steps) if self.explores else steps

    def next_rung(self, trial: TrialState) -> int:
        """The first of its rungs that a running trial has not passed."""
        for step in self.rungs(trial)[:-1]:
            passed = step in trial.decisions and trial.decisions[step].go_on if self.explores else step in trial.probes
            if not passed:
                return step
        return self.rungs(trial)[-1]

    @cached_property
    def inherited(self) -> list[Point]:
        """The points of the studies that this one extends, as far as they lie in its space."""
        points = []
        for name in self.extends:
            for trial in StudyState.reopen(self.store, name).distinct:
                with contextlib.suppress(WrongDomain, ValidationError):
                    if trial.state not in ("UNAVAILABLE", "FAILED"):
                        points.append(self.space.trial(trial.point)[1])
        return points

    def trial_at(self, point: Mapping[str, Any]) -> TrialState | None:
        """The first trial with the configuration of `point`."""
        number = self._first.get(point_key(point))
        return None if number is None else self.trials[number]

    @property
    def enough(self) -> bool:
        """Whether an exploration has as many configurations as `search.trials`. Always False for a reproduction."""
        return self.explores and len(self.distinct) >= self.space.search.trials

    @property
    def finished(self) -> bool:
        """Whether all that the space asks for has been proposed and has ended."""
        proposed = {trial.row for trial in self.trials} >= set(range(len(self.space.rows)))
        asked = self.enough if self.explores else proposed
        return asked and all(trial.ended for trial in self.trials)

    # --- changes

    def record_driver(self, environment: Mapping[str, Any]) -> None:
        """Record that a driver has started in this environment."""
        if self.drivers[-1:] != [environment]:
            self._write("driven", environment=dict(environment))
            self.drivers.append(dict(environment))

    def propose(self, point: Point, row: int | None = None) -> TrialState:
        """Add a trial at a complete point. If its configuration was proposed before, it takes the earlier results."""
        earlier = self.trial_at(point)
        return self._record(
            "proposed",
            trial=len(self.trials),
            point=point,
            row=row,
            at=self.now,
            repeats=earlier.number if earlier else None,
        )

    def refuse(self, point: Point, row: int, reason: str) -> TrialState:
        """Add a trial for a row that cannot be run here. The trial ends at once."""
        facts = {"point": point, "row": row, "state": "UNAVAILABLE", "reason": reason}
        return self._record("proposed", trial=len(self.trials), **facts)

    def probed(self, number: int, step: int, metrics: Mapping[str, float]) -> TrialState:
        """Record the metrics of a trial's probe at `step`, and decide whether the trial continues.

        The journal of an earlier version may end between the entries. If called again with the same probe, this adds
        the missing ones.
        """
        with self._together():
            return self._probed(number, step, metrics)

    def _probed(self, number: int, step: int, metrics: Mapping[str, float]) -> TrialState:
        trial = self.trials[number]
        if trial.ended:
            return trial
        value = metrics[self.metric]
        if not math.isfinite(value):
            return self.fail(number, f"{self.metric} is {value} at step {step}")
        if step not in trial.probes:
            self._record("probed", trial=number, step=step, metrics=dict(metrics))
        if step == self.rungs(trial)[-1]:
            return self.end(number, "COMPLETE", f"trained to its end, step {step}")
        return self._decide(trial, step) if self.explores else trial

    def rechecked(self, number: int) -> TrialState:
        """Decide whether a trial continues after its recheck: it and its rival have been probed with more samples."""
        trial = self.trials[number]
        with self._together():
            return trial if trial.ended else self._decide(trial, trial.step)

    def difference(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        """By how much a trial is worse than another at `step`, by their probes or those of the recheck."""
        mine, theirs = (probe_key(self.run(t), step, self.probe(t, recheck)) for t in (trial, rival))
        return retry_storage(
            lambda: difference(self.store, mine, theirs, self.probe(trial, recheck)), self.journal.notify
        )

    def promote(self, last: bool = False) -> TrialState | None:
        """Let the best of the waiting trials go on, and return it; None if none may go on for now.

        Args:
            last: no other trial is under way or will be.
        """
        promoted = self._rungs.promising(last)
        if promoted is None:
            return None
        number, decision = promoted
        return self._record("promoted", trial=number, at=self.now - decision.step, **vars(decision))

    def prune_waiting(self) -> None:
        """End the trials that wait at a rung. No other trial will come, so they would never be among the best there."""
        with self._together():
            for trial in [trial for trial in self.trials if trial.waits]:
                self.end(trial.number, "PRUNED", f"waited at step {trial.step}, and was never among the best there")

    def fail(self, number: int, reason: str, again: bool = False) -> TrialState:
        """End a trial that cannot be trained. With `again`, the next driver tries it once more."""
        trial = self.trials[number]
        return self.end(number, "FAILED", reason, now=trial.at + self.next_rung(trial), again=again)

    def retry(self) -> list[TrialState]:
        """Restart the trials that failed under an earlier driver, perhaps for a reason outside the trial; returns
        them."""
        failed = [trial for trial in self.distinct if trial.state == "FAILED" and trial.again]
        return [self._record("retried", trial=trial.number) for trial in failed]

    def end(self, number: int, state: State, reason: str, **facts: Any) -> TrialState:
        """End a trial and the trials that repeat it."""
        with self._together():
            trial = self._record("ended", trial=number, state=state, reason=reason, **facts)
            for repeat in [self.trials[other] for other in self._repeats.get(number, [])]:
                if not repeat.ended:
                    self._record("ended", trial=repeat.number, state=state, reason=f"same as trial {number}: {reason}")
        return trial

    # --- inside

    def _decide(self, trial: TrialState, step: int) -> TrialState:
        """Decide whether a trial goes on from a rung, waits there, or is probed again."""
        number, value = trial.number, trial.probes[step][self.metric]
        if isinstance(self.space.search.scheduler, Promotion):
            return trial if trial.waits else self._record("waits", trial=number, step=step)
        if step not in trial.decisions:
            outcome = self._decide_or_recheck(trial, self._rungs.decide(step, number, value))
            kind = "doubted" if isinstance(outcome, Recheck) else "decided"
            trial = self._record(kind, trial=number, **vars(outcome))
        if step in trial.decisions and not trial.decisions[step].go_on:
            return self.end(number, "PRUNED", trial.decisions[step].reason)
        return trial

    def _decide_or_recheck(self, trial: TrialState, ranked: Decision) -> Decision | Recheck:
        """The decision by rank. Exception, with `noise: paired`: if the trial would be stopped but is not clearly worse
        than its rival, a recheck; and after the recheck, the decision by its probes."""
        rule, recheck = self.space.search.scheduler, trial.rechecks.get(ranked.step)
        if ranked.go_on or ranked.rival is None or not isinstance(rule, STOPPING) or rule.noise == "ignore":
            return ranked
        rival = self.trials[recheck.rival if recheck else ranked.rival]
        gap, samples = self.difference(trial, rival, ranked.step, recheck), self.probe(trial, recheck).samples
        worse = gap.is_worse(rule.level)
        if not worse and recheck is None:
            return Recheck(ranked.step, rival.number, samples * rule.larger, gap.value, gap.error)
        decision = replace(ranked, go_on=not worse, rival=rival.number)
        return replace(decision, difference=gap.value, error=gap.error, samples=samples)

    def _write(self, kind: str, **facts: Any) -> Entry:
        return self.journal.append(kind, time=round(time.time(), 3), **facts)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Write what is recorded inside as one batch of the journal. The watchers are called afterwards."""
        with self.journal.together():
            yield
        self._call_watchers()

    def _record(self, kind: str, **facts: Any) -> TrialState:
        """Write a journal entry, apply it, and pass the trial to the watchers."""
        trial = self._apply(self._write(kind, **facts))
        self._changed[trial.number] = trial
        self._call_watchers()
        return trial

    def _call_watchers(self) -> None:
        """Pass the trials that have changed to the watchers, unless more is to be written with them."""
        if self.journal.collects:
            return
        changed, self._changed = self._changed, {}
        for trial in changed.values():
            for watcher in self.watchers:
                watcher(trial)

    def _apply(self, entry: Entry) -> TrialState:
        """Apply a journal entry to the state; returns the entry's trial."""
        kind, when = entry["kind"], entry.get("time", 0.0)
        facts = {name: value for name, value in entry.items() if name not in ("kind", "trial", "time")}
        if kind == "proposed":
            self._add_trial(entry["trial"], facts, when)
        trial = self.trials[entry["trial"]]
        step, waited = facts.get("step", trial.step), trial.waits
        trial.apply(kind, facts, when)
        self.now = max(self.now, trial.at + (step if kind == "probed" else 0), facts.get("now", 0))
        if kind in ("decided", "doubted"):
            self._rungs.record(step, trial.number, trial.probes[step][self.metric])
        elif kind == "waits":
            self._rungs.wait(step, trial.number, trial.probes[step][self.metric])
        elif waited and not trial.waits:
            self._rungs.leave(step, trial.number)
        elif kind == "ended" and trial.repeats is not None:
            earlier = self.trials[trial.repeats]
            trial.probes, trial.probed_at = dict(earlier.probes), dict(earlier.probed_at)
        elif kind == "retried":
            for number in self._repeats.get(trial.number, []):
                self.trials[number].apply(kind, facts)
        if kind == "ended" and trial.state == "COMPLETE" and trial.repeats is None:
            self.best = min(filter(None, (self.best, trial)), key=self._rank)
        return trial

    def _add_trial(self, number: int, facts: Mapping[str, Any], when: float) -> None:
        driver = max(0, len(self.drivers) - 1)
        trial = TrialState(number, **facts, proposed_at=when, ended_at=when, driver=driver)
        self.trials.append(trial)
        if trial.repeats is None:
            self.distinct.append(trial)
            self._first.setdefault(point_key(trial.point), trial.number)
        else:
            self._repeats.setdefault(trial.repeats, []).append(trial.number)

    def _rank(self, trial: TrialState) -> tuple[float, int]:
        return trial.last(self.metric) or math.inf, trial.number
