"""A study's state as plain data: what `--json` prints and what tables and plots are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raysweep.space import runs
from raysweep.space.domains import Point, label
from raysweep.store import history
from raysweep.study.costs import Charge, Payer, charges
from raysweep.study.pareto import Direction, front
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from raysweep.uris import public

Row = dict[str, Any]
LEVEL = 0.95


def trial_row(study: StudyState, trial: TrialState) -> Row:
    """One trial: where it is, what became of it and why, its keys, what was published for it."""
    published = study.space.rows[trial.row].published(study.space.published_samples) if trial.row is not None else {}
    row: Row = {
        "trial": trial.number,
        "row": None if trial.row is None else trial.row + 1,
        "params": trial.point,
        "state": trial.state,
        "reason": trial.reason,
        "steps": trial.step,
        "metrics": trial.probes.get(trial.step, {}),
        "probes": [{"step": step, **metrics} for step, metrics in sorted(trial.probes.items())],
        "decisions": [asdict(decision) for _, decision in sorted(trial.decisions.items())],
        "repeats": trial.repeats,
        "published": published,
        "history_key": None,
        "teacher_key": None,
        "teacher_steps": 0,
    }
    if trial.state != "UNAVAILABLE":
        run = study.run(trial)
        row["history_key"] = history.key(run, trial.step)
        if found := runs.teachers(run):
            row["teacher_key"] = history.key(found[0].run, found[0].step)
            row["teacher_steps"] = runs.teacher_steps(run)
    return row


def without_sharing(rows: list[Row]) -> int:
    """The steps of trial-based execution: each trial's own up to where it ended, and its teachers' from 0 with them."""
    return sum(row["steps"] + (row["teacher_steps"] if row["steps"] else 0) for row in rows)


def summary(study: StudyState, charged: Mapping[Payer, Charge] | None = None) -> dict[str, Any]:
    """All of a study that its journal and the store know. `charged` is what its trials cost, where other studies have
    part in it."""
    charged = charges([study]) if charged is None else charged
    rows = [
        trial_row(study, trial) | {"cost": charged[study.space.id, trial.number].as_dict()} for trial in study.trials
    ]
    best = study.best
    return {
        "study": study.space.id,
        "metric": study.metric,
        "trials": rows,
        "best": rows[best.number] if best else None,
        "not_clearly_worse": not_clearly_worse(study),
        "pareto": {name: members for name, (members, _) in tradeoffs(study, rows).items()},
        "steps": {"without_sharing": without_sharing(rows)},
        "cost": {name: sum(row["cost"][name] for row in rows) for name in Charge().as_dict()},
        "storage": public(study.store.uri),
    }


def not_clearly_worse(study: StudyState) -> list[int]:
    """The complete trials beside the best whose last probes do not say, at `LEVEL`, that they are worse."""
    best = study.best
    if best is None:
        return []
    others = [t for t in study.distinct if t.state == "COMPLETE" and t.step == best.step and t is not best]
    return [t.number for t in others if not study.difference(t, best, best.step, None).is_worse(LEVEL)]


def tradeoffs(study: StudyState, rows: list[Row]) -> dict[str, tuple[list[int], dict[int, float]]]:
    """What the deciding metric is set against, by name: the trials that no other beats in both, and where each measured
    trial is. `steps` are those of the trial and of its teachers; beside them IS, where it is measured."""
    measured = [row for row in rows if row["repeats"] is None and study.metric in row["metrics"]]
    places = {"steps": [float(row["steps"] + row["teacher_steps"]) for row in measured]}
    if "is" in study.space.probe.metrics:
        name = study.space.probe.name("is")
        places[name] = [row["metrics"].get(name, math.nan) for row in measured]
    found = {}
    for name, values in places.items():
        other: Direction = "falls" if name == "steps" else "rises"
        points = [(row["metrics"][study.metric], value) for row, value in zip(measured, values, strict=True)]
        members = [measured[place]["trial"] for place in front(points, ["falls", other])]
        found[name] = members, {row["trial"]: value for row, value in zip(measured, values, strict=True)}
    return found


def comparable(rows: Sequence[Row]) -> tuple[int | None, list[tuple[Row, dict[str, Any]]]]:
    """Rows with the probes by which they can be set beside each other: those at their ends, where all are complete
    (step None), else those at the last step that every row with a probe has come to."""
    probed = [row for row in rows if row["probes"]]
    if not probed or all(row["state"] == "COMPLETE" for row in probed):
        return None, [(row, row["probes"][-1]) for row in probed]
    common = set.intersection(*({probe["step"] for probe in row["probes"]} for row in probed))
    if not common:
        return None, []
    step = max(common)
    return step, [(row, next(probe for probe in row["probes"] if probe["step"] == step)) for row in probed]


def searched(study: StudyState) -> list[str]:
    """The paths of the searched parameters, in the order of the file."""
    return list(dict.fromkeys(path for trial in study.trials for path in trial.point))


def published(study: StudyState) -> list[str]:
    """The metrics that were published for rows of this study, FID first."""
    samples = study.space.published_samples
    return list(dict.fromkeys(name for row in study.space.rows for name in row.published(samples)))


def name(path: str) -> str:
    """A parameter's path for people."""
    return path.removeprefix("method.")


def changed(study: StudyState, point: Point) -> str:
    """How a point differs from the space's defaults, in a few words."""
    differs = differing(point, study.space.defaults)
    return ", ".join(f"{path} {value}" for path, value in differs.items()) or "the defaults"


def differing(point: Point, defaults: Point) -> dict[str, str]:
    """The same by parameter."""
    return {name(path): text(value) for path, value in point.items() if defaults.get(path) != value}


def text(value: Any) -> str:
    """A parameter's value for people: `[8, 6]` is `8 → 6`."""
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]} → {value[1]}"
    if isinstance(value, Mapping) and "kind" in value:
        return str(value["kind"])
    return f"{value:g}" if isinstance(value, float) else str(label(value))
