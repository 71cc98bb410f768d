"""The state of a study as plain values, for `--json`, tables, pictures and pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raysweep.space import runs
from raysweep.space.domains import Point, label
from raysweep.store import history
from raysweep.study.costs import Charge, Payer, charges
from raysweep.study.pareto import Direction, front
from raysweep.study.rungs import Decision
from raysweep.study.state import StudyState
from raysweep.study.trial import State, TrialState
from trainables.redaction import public, public_data

LEVEL = 0.95  # of confidence: a trial is clearly worse than another if a one-sided test at this level says so
STATE_WORDS: dict[State, str] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAILED": "failed",
    "UNAVAILABLE": "unavailable",
    "RUNNING": "unfinished",
}


@dataclass(frozen=True)
class TrialSummary:
    """One trial: its configuration, how far it came, what was decided about it and why, and what it cost.

    Attributes:
        number: its position in the order of proposal, from 0.
        params: the values of the searched parameters, by path.
        reason: why it ended, in one line; empty while it runs.
        step: the optimizer step of its last probe, 0 before the first one.
        value: the deciding metric at `step`, lower is better; None before the first probe.
        probes: all metrics, by step in ascending order.
        decisions: what the scheduler decided at each rung, in the order of the steps.
        repeats: the earlier trial with the same configuration, whose results it takes; None if it is the first.
        row: the row of the space that asked for it, from 1; None if a sampler proposed it.
        reference: the paper's values for that row, by metric.
        history_key: the key of its checkpoint at `step`; None if it cannot be run.
        teacher_key: the key of the checkpoint that teaches it; None if none does.
        teacher_steps: the optimizer steps of all its teachers, including the teachers of teachers.
        cost: device-seconds.
    """

    number: int
    params: Point
    state: State
    reason: str
    step: int
    value: float | None
    probes: dict[int, dict[str, float]]
    decisions: list[Decision] = field(default_factory=list)
    repeats: int | None = None
    row: int | None = None
    reference: dict[str, float] = field(default_factory=dict)
    history_key: str | None = None
    teacher_key: str | None = None
    teacher_steps: int = 0
    cost: Charge = field(default_factory=Charge)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics at `step`; empty before the first probe."""
        return self.probes.get(self.step, {})

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints for it."""
        return {
            "trial": self.number,
            "row": self.row,
            "params": public_data(self.params),
            "state": self.state,
            "reason": self.reason,
            "steps": self.step,
            "metrics": self.metrics,
            "probes": [{"step": step, **metrics} for step, metrics in self.probes.items()],
            "decisions": [asdict(decision) for decision in self.decisions],
            "repeats": self.repeats,
            "published": self.reference,
            "history_key": self.history_key,
            "teacher_key": self.teacher_key,
            "teacher_steps": self.teacher_steps,
            "cost": self.cost.as_dict(),
        }


@dataclass(frozen=True)
class Front:
    """The deciding metric against a second quantity.

    Attributes:
        members: the numbers of the trials that no other trial dominates.
        values: the second quantity of every measured trial, by the trial's number.
    """

    members: list[int]
    values: dict[int, float]


@dataclass(frozen=True)
class StepCount:
    """Optimizer steps.

    Attributes:
        without_sharing: how many there would be if every trial started from 0 and trained its own teachers.
        computed: how many the driver that has just ended has computed; None if no driver ran.
    """

    without_sharing: int
    computed: int | None = None

    @property
    def reused(self) -> int:
        """The steps that did not have to be computed."""
        return self.without_sharing - (self.computed or 0)

    def as_dict(self) -> dict[str, int]:
        """The object that `--json` prints for it."""
        if self.computed is None:
            return {"without_sharing": self.without_sharing}
        return {"without_sharing": self.without_sharing, "computed": self.computed, "reused": self.reused}


@dataclass(frozen=True)
class StudySummary:
    """A study's trials, results and costs, from its journal and the store.

    Attributes:
        study: its name.
        metric: the name of the deciding metric; lower is better.
        best: the complete trial with the lowest metric.
        not_clearly_worse: the other complete trials whose probes do not show, at `LEVEL`, that they are worse.
        pareto: the metric against "steps" (the trial's and its teachers', fewer is better), and against the inception
            score (higher is better) if it was measured.
        cost: device-seconds of all trials together.
        storage: the URI of the store, without secrets.
    """

    study: str
    metric: str
    trials: list[TrialSummary]
    best: TrialSummary | None
    not_clearly_worse: list[int]
    pareto: dict[str, Front]
    steps: StepCount
    cost: Charge
    storage: str

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints for it."""
        return {
            "study": self.study,
            "metric": self.metric,
            "trials": [trial.as_dict() for trial in self.trials],
            "best": self.best.as_dict() if self.best else None,
            "not_clearly_worse": self.not_clearly_worse,
            "pareto": {name: front.members for name, front in self.pareto.items()},
            "steps": self.steps.as_dict(),
            "cost": self.cost.as_dict(),
            "storage": self.storage,
        }


def summarize(study: StudyState, charged: Mapping[Payer, Charge] | None = None) -> StudySummary:
    """The summary of a study.

    Args:
        charged: the cost of its trials, if it was computed together with other studies that share work with it.
    """
    charged = charges([study]) if charged is None else charged
    trials = [summarize_trial(study, trial, charged[study.space.id, trial.number]) for trial in study.trials]
    return StudySummary(
        study=study.space.id,
        metric=study.metric,
        trials=trials,
        best=trials[study.best.number] if study.best else None,
        not_clearly_worse=_not_clearly_worse(study),
        pareto=fronts(study, trials),
        steps=StepCount(sum(trial.step + trial.teacher_steps for trial in trials if trial.step)),
        cost=sum((trial.cost for trial in trials), Charge()),
        storage=public(study.store.uri),
    )


def summarize_trial(study: StudyState, trial: TrialState, cost: Charge | None = None) -> TrialSummary:
    """The summary of one trial."""
    samples = study.space.published_samples
    reference = {} if trial.row is None else study.space.rows[trial.row].reference_values(samples)
    keys: dict[str, Any] = {}
    if trial.state != "UNAVAILABLE":
        run = study.run(trial)
        keys["history_key"] = history.key(run, trial.step)
        if teachers := runs.teachers(run):
            keys["teacher_key"] = history.key(teachers[0].run, teachers[0].step)
            keys["teacher_steps"] = runs.teacher_steps(run)
    return TrialSummary(
        number=trial.number,
        params=trial.point,
        state=trial.state,
        reason=trial.reason,
        step=trial.step,
        value=trial.last(study.metric),
        probes=dict(sorted(trial.probes.items())),
        decisions=[decision for _, decision in sorted(trial.decisions.items())],
        repeats=trial.repeats,
        row=None if trial.row is None else trial.row + 1,
        reference=reference,
        cost=cost or Charge(),
        **keys,
    )


def _not_clearly_worse(study: StudyState) -> list[int]:
    best = study.best
    if best is None:
        return []
    others = [t for t in study.distinct if t.state == "COMPLETE" and t.step == best.step and t is not best]
    return [t.number for t in others if not study.difference(t, best, best.step, None).is_worse(LEVEL)]


def fronts(study: StudyState, trials: Iterable[TrialSummary]) -> dict[str, Front]:
    """The fronts of `StudySummary.pareto`, by the name of the second quantity."""
    measured = [(trial, trial.value) for trial in trials if trial.repeats is None and trial.value is not None]
    quantities: dict[str, tuple[Direction, list[float]]] = {
        "steps": ("falls", [float(trial.step + trial.teacher_steps) for trial, _ in measured])
    }
    if "is" in study.space.probe.metrics:
        score = study.space.probe.name("is")
        quantities[score] = "rises", [trial.metrics.get(score, math.nan) for trial, _ in measured]
    numbers = [trial.number for trial, _ in measured]
    result = {}
    for name, (better, values) in quantities.items():
        points = list(zip((value for _, value in measured), values, strict=True))
        members = [numbers[place] for place in front(points, ["falls", better])]
        result[name] = Front(members, dict(zip(numbers, values, strict=True)))
    return result


def comparable_probes(
    trials: Sequence[TrialSummary],
) -> tuple[int | None, list[tuple[TrialSummary, dict[str, float]]]]:
    """The metrics by which trials can be compared. If all that were probed are complete, these are the metrics at their
    ends, and the step returned is None. Otherwise they are those at the last step at which all of them were probed."""
    probed = [trial for trial in trials if trial.probes]
    if not probed or all(trial.state == "COMPLETE" for trial in probed):
        return None, [(trial, trial.metrics) for trial in probed]
    common = set.intersection(*(set(trial.probes) for trial in probed))
    if not common:
        return None, []
    step = max(common)
    return step, [(trial, trial.probes[step]) for trial in probed]


def searched_paths(study: StudyState) -> list[str]:
    """The paths of the searched parameters, in the order of the file."""
    return list(dict.fromkeys(path for trial in study.trials for path in trial.point))


def reference_metrics(study: StudyState) -> list[str]:
    """The metrics for which rows of the space give the paper's values, FID first."""
    samples = study.space.published_samples
    return list(dict.fromkeys(name for row in study.space.rows for name in row.reference_values(samples)))


# --- text


def short_path(path: str) -> str:
    """A parameter's path without `method.`, which nearly all have in common."""
    return path.removeprefix("method.")


def value_text(value: Any) -> str:
    """A parameter's value as text, without secrets: `[8, 6]` is `8 → 6`."""
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]} → {value[1]}"
    if isinstance(value, Mapping) and "kind" in value:
        return public(str(value["kind"]))
    return f"{value:g}" if isinstance(value, float) else public(str(label(value)))


def params_text(params: Point) -> str:
    """All parameters on one line."""
    return ", ".join(f"{short_path(path)} {value_text(value)}" for path, value in params.items())


def differing_params(point: Point, defaults: Point) -> dict[str, str]:
    """The parameters in which a point differs from the defaults, by short path, with their values as text."""
    return {short_path(path): value_text(value) for path, value in point.items() if defaults.get(path) != value}


def difference_from_defaults(study: StudyState, point: Point) -> str:
    """How a point differs from the space's defaults, on one line."""
    differing = differing_params(point, study.space.defaults)
    return ", ".join(f"{path} {value}" for path, value in differing.items()) or "the defaults"
