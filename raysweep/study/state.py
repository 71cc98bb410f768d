"""The state of a study: its trials, what was measured, decided and why. Read from the journal, changed only through
it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from raysweep.errors import UserError
from raysweep.retry import retry_storage
from raysweep.space import runs
from raysweep.space.domains import Point, PointKey, WrongDomain, point_key
from raysweep.space.schedulers import STOPPING, Promotion
from raysweep.space.space import Space
from raysweep.store.history import probe_key
from raysweep.store.store import Store
from raysweep.study.comparison import difference
from raysweep.study.journal import Entry, Journal, JournalWriter, opening, studies
from raysweep.study.rungs import Decision, Difference, Recheck, Rungs
from raysweep.study.trial import State, TrialState
from trainables.config import ProbeSpec, Run


class StudyState:
    """A study in a store. Every change is journalled before it counts, then told to `watchers`."""

    def __init__(self, space: Space, store: Store, writer: JournalWriter | None = None, extends: Sequence[str] = ()):
        self.space, self.store = space, store
        self.journal = Journal(store.files, space.id, writer)
        self._tell = writer.notify if writer else lambda message: None
        self.trials: list[TrialState] = []
        self.distinct: list[TrialState] = []  # those that are not repeats of earlier ones
        self.best: TrialState | None = None  # the complete one with the lowest metric, the earliest of equal ones
        self.watchers: list[Callable[[TrialState], None]] = []
        self.now = 0  # the time of the last event, in steps of trials (turns.py)
        self._rungs = Rungs(space.search.scheduler, len(space.rungs(space.trial({})[0])) - 1)
        self._runs: dict[int, Run] = {}
        self._rungs_of: dict[int, list[int]] = {}
        self._first: dict[PointKey, int] = {}  # configuration -> its first trial
        self._twins: dict[int, list[int]] = {}  # trial -> those that repeat it
        self.drivers: list[dict[str, Any]] = []  # with what it was driven: each environment that was not the last
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
        """The study of that name, or else the only one whose name begins so, from its journal alone.

        Raises:
            UserError: there is none, or there are several.
        """
        known = studies(store.files)
        called = [study for study in known if name in (study, study.rsplit("-", 2)[0])]  # or without profile and digest
        found = called or [study for study in known if study.startswith(name)]
        if len(found) != 1:
            said = f"several studies begin with '{name}'" if found else f"no study '{name}'"
            raise UserError(f"{said} in {store.uri}; there are: {', '.join(found or known) or 'none'}")
        return cls(Space.reopen(opening(store.files, found[0])["space"]), store)

    @cached_property
    def milestones(self) -> list[int]:
        """Optimizer steps at which runs publish."""
        return runs.milestones(self.space)

    @property
    def metric(self) -> str:
        """What is minimised."""
        return self.space.probe.metric

    def name(self, trial: TrialState) -> str:
        """What a trial is called where several studies are under way."""
        return f"{self.space.study}/{trial.number}"

    def run(self, trial: TrialState) -> Run:
        """The run that a trial trains."""
        if trial.number not in self._runs:
            self._runs[trial.number] = runs.student(self.space, self.space.trial(trial.point)[0])
        return self._runs[trial.number]

    def probe(self, trial: TrialState, recheck: Recheck | None = None) -> ProbeSpec:
        """How a trial's snapshots are judged; by more samples where a doubt wants them."""
        spec = self.space.probe_of(self.space.trial(trial.point)[0])
        return spec.model_copy(update={"samples": recheck.samples}) if recheck else spec

    def rungs(self, trial: TrialState) -> list[int]:
        """The steps at which a trial is probed, its end last."""
        if trial.number not in self._rungs_of:
            steps = self.space.rungs(self.space.trial(trial.point)[0])
            explores = self.space.search.mode == "explore"
            self._rungs_of[trial.number] = self._rungs.judged(trial.number, steps) if explores else steps
        return self._rungs_of[trial.number]

    def next_rung(self, trial: TrialState) -> int:
        """The first of its rungs that a running trial has not left behind."""
        explores = self.space.search.mode == "explore"
        for step in self.rungs(trial)[:-1]:
            passed = step in trial.decisions and trial.decisions[step].go_on if explores else step in trial.probes
            if not passed:
                return step
        return self.rungs(trial)[-1]

    @cached_property
    def inherited(self) -> list[Point]:
        """The configurations of the studies that this one extends, where they lie in its space."""
        points = []
        for name in self.extends:
            for trial in StudyState.reopen(self.store, name).distinct:
                with contextlib.suppress(WrongDomain, ValidationError):
                    if trial.state not in ("UNAVAILABLE", "FAILED"):
                        points.append(self.space.trial(trial.point)[1])
        return points

    def same(self, point: Mapping[str, Any]) -> TrialState | None:
        """The first trial with that configuration."""
        number = self._first.get(point_key(point))
        return None if number is None else self.trials[number]

    @property
    def enough(self) -> bool:
        """Whether an exploration has all the configurations it asked for; a reproduction takes every row."""
        search = self.space.search
        return search.mode == "explore" and len(self.distinct) >= search.trials

    @property
    def finished(self) -> bool:
        """Whether all that the space asks for has been proposed and has ended."""
        proposed = {trial.row for trial in self.trials} >= set(range(len(self.space.rows)))
        asked = self.enough if self.space.search.mode == "explore" else proposed
        return asked and all(trial.ended for trial in self.trials)

    # --- what happens to it

    def driven(self, environment: Mapping[str, Any]) -> None:
        """A driver begins, with these versions."""
        if self.drivers[-1:] != [environment]:
            self._write("driven", environment=dict(environment))
            self.drivers.append(dict(environment))

    def propose(self, point: Point, row: int | None = None) -> TrialState:
        """A new trial at a full point. A configuration that was proposed before takes the earlier one's answer."""
        earlier = self.same(point)
        return self._note(
            "proposed",
            trial=len(self.trials),
            point=point,
            row=row,
            at=self.now,
            repeats=earlier.number if earlier else None,
        )

    def refuse(self, point: Point, row: int, reason: str) -> TrialState:
        """A row that cannot be run here: proposed and ended at once."""
        facts = {"point": point, "row": row, "state": "UNAVAILABLE", "reason": reason}
        return self._note("proposed", trial=len(self.trials), **facts)

    def probed(self, number: int, step: int, metrics: Mapping[str, float]) -> TrialState:
        """A probe's metrics at a step. Decides, once and for good, what becomes of the trial.

        Every entry of the journal may be the last before a crash: what is noted is kept, what is missing is added.
        """
        trial = self.trials[number]
        if trial.ended:
            return trial
        value = metrics[self.metric]
        if not math.isfinite(value):
            return self.fail(number, f"{self.metric} is {value} at step {step}")
        if step not in trial.probes:
            self._note("probed", trial=number, step=step, metrics=dict(metrics))
        if step == self.rungs(trial)[-1]:
            return self.end(number, "COMPLETE", f"trained to its end, step {step}")
        return self._judge(trial, step) if self.space.search.mode == "explore" else trial

    def checked(self, number: int) -> TrialState:
        """A trial and its rival were probed again, as a doubt wanted: now it can be decided."""
        trial = self.trials[number]
        return trial if trial.ended else self._judge(trial, trial.step)

    def difference(self, trial: TrialState, rival: TrialState, step: int, recheck: Recheck | None) -> Difference:
        """By how much a trial is worse than another at a step, by their probes."""
        mine, theirs = (probe_key(self.run(one), step, self.probe(one, recheck)) for one in (trial, rival))
        return retry_storage(lambda: difference(self.store, mine, theirs, self.probe(trial, recheck)), self._tell)

    def promote(self, last: bool = False) -> TrialState | None:
        """The most promising of the trials that wait at a rung, which now goes on; None where none does for now.

        Args:
            last: nothing else is under way or will be.
        """
        if not (found := self._rungs.promising(last)):
            return None
        number, decision = found
        return self._note("promoted", trial=number, at=self.now - decision.step, **vars(decision))

    def prune_waiting(self) -> None:
        """End the trials that wait at a rung: nothing is left that could make them promising."""
        for trial in [trial for trial in self.trials if trial.waits]:
            self.end(trial.number, "PRUNED", f"waited at step {trial.step}, and was never among the best there")

    def fail(self, number: int, reason: str, again: bool = False) -> TrialState:
        """A trial cannot be carried on; with `again`, not by this driver."""
        trial = self.trials[number]
        return self.end(number, "FAILED", reason, now=trial.at + self.next_rung(trial), again=again)

    def retry(self) -> list[TrialState]:
        """Set the trials going again that an earlier driver could not carry on through no known fault of theirs."""
        failed = [trial for trial in self.distinct if trial.state == "FAILED" and trial.again]
        return [self._note("retried", trial=trial.number) for trial in failed]

    def end(self, number: int, state: State, reason: str, **facts: Any) -> TrialState:
        """A trial has ended, and with it those that repeat it."""
        trial = self._note("ended", trial=number, state=state, reason=reason, **facts)
        for twin in [self.trials[other] for other in self._twins.get(number, [])]:
            if not twin.ended:
                self._note("ended", trial=twin.number, state=state, reason=f"same as trial {number}: {reason}")
        return trial

    # --- inside

    def _judge(self, trial: TrialState, step: int) -> TrialState:
        """Decide what becomes of a trial at a rung."""
        number, value = trial.number, trial.probes[step][self.metric]
        if isinstance(self.space.search.scheduler, Promotion):
            return trial if trial.waits else self._note("waits", trial=number, step=step)
        if step not in trial.decisions:
            found = self._weigh(trial, self._rungs.decide(step, number, value))
            trial = self._note("doubted" if isinstance(found, Recheck) else "decided", trial=number, **vars(found))
        if step in trial.decisions and not trial.decisions[step].go_on:
            return self.end(number, "PRUNED", trial.decisions[step].reason)
        return trial

    def _weigh(self, trial: TrialState, ranked: Decision) -> Decision | Recheck:
        """What ranks say, unless it is to stop a trial and noise might as well say it."""
        rule, recheck = self.space.search.scheduler, trial.rechecks.get(ranked.step)
        if ranked.go_on or ranked.rival is None or not isinstance(rule, STOPPING) or rule.noise == "ignore":
            return ranked
        rival = self.trials[recheck.rival if recheck else ranked.rival]
        found, samples = self.difference(trial, rival, ranked.step, recheck), self.probe(trial, recheck).samples
        worse = found.is_worse(rule.level)
        if not worse and recheck is None:
            return Recheck(ranked.step, rival.number, samples * rule.larger, found.value, found.error)
        told = replace(ranked, go_on=not worse, rival=rival.number)
        return replace(told, difference=found.value, error=found.error, samples=samples)

    def _write(self, kind: str, **facts: Any) -> Entry:
        return self.journal.append(kind, time=round(time.time(), 3), **facts)

    def _note(self, kind: str, **facts: Any) -> TrialState:
        trial = self._apply(self._write(kind, **facts))
        for watcher in self.watchers:
            watcher(trial)
        return trial

    def _apply(self, entry: Entry) -> TrialState:
        kind, when = entry["kind"], entry.get("time", 0.0)
        facts = {name: value for name, value in entry.items() if name not in ("kind", "trial", "time")}
        if kind == "proposed":
            by = {"proposed_at": when, "ended_at": when, "driver": max(0, len(self.drivers) - 1)}
            self.trials.append(proposed := TrialState(entry["trial"], **facts, **by))
            if proposed.repeats is None:
                self.distinct.append(proposed)
                self._first.setdefault(point_key(proposed.point), proposed.number)
            else:
                self._twins.setdefault(proposed.repeats, []).append(proposed.number)
        trial = self.trials[entry["trial"]]
        step, waited = facts.get("step", trial.step), trial.waits
        trial.hear(kind, facts, when)
        self.now = max(self.now, trial.at + (step if kind == "probed" else 0), facts.get("now", 0))
        if kind in ("decided", "doubted", "waits"):
            tell = self._rungs.wait if kind == "waits" else self._rungs.record
            tell(step, trial.number, trial.probes[step][self.metric])
        elif waited and not trial.waits:
            self._rungs.leave(step, trial.number)
        elif kind == "ended" and trial.repeats is not None:
            earlier = self.trials[trial.repeats]
            trial.probes, trial.probed_at = dict(earlier.probes), dict(earlier.probed_at)
        elif kind == "retried":
            for twin in self._twins.get(trial.number, []):
                self.trials[twin].hear(kind, facts)
        if kind == "ended" and trial.state == "COMPLETE" and trial.repeats is None:
            self.best = min(filter(None, (self.best, trial)), key=self._place)
        return trial

    def _place(self, trial: TrialState) -> tuple[float, int]:
        return trial.last(self.metric) or math.inf, trial.number
