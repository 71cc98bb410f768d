"""Which parameters matter: fANOVA over what a study has measured, and Optuna's own interactive plots of it.

Optuna leaves pruned trials out, so that a parameter by which trials are pruned looks unimportant. Here the question is
asked twice: for the metric at the first rung, which all trials have come to, and at the end.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial

from raysweep.space import domains
from raysweep.space.domains import Point
from raysweep.study import summary
from raysweep.study.optuna_view import distribution, told
from raysweep.study.state import StudyState
from raysweep.study.summary import Row

MOST = 400  # trials that fANOVA looks at, drawn by chance from more: its time grows with their square
FEWEST = 4
SEED = 0


@dataclass(frozen=True)
class Importance:
    """How much of the variance of a metric each parameter explains, most first; they sum to 1.

    Attributes:
        when: at which step, for people.
        trials: over how many.
        left_out: parameters that are not open in all of these trials.
    """

    when: str
    trials: int
    shares: dict[str, float]
    left_out: list[str]


def importances(study: StudyState, rows: list[Row]) -> list[Importance]:
    """At the first rung, and at the end; without what has too few trials, or nothing that differs."""
    found = []
    for when, values in _targets(study, rows):
        if len(values) < FEWEST or len({value for _, value in values}) < 2:
            continue
        chosen = values if len(values) <= MOST else random.Random(SEED).sample(values, MOST)
        known = _study(study, chosen)
        shared = set.intersection(*(set(trial.params) for trial in known.trials))
        varied = [name for name in shared if len({str(trial.params[name]) for trial in known.trials}) > 1]
        if not varied:
            continue
        evaluator = FanovaImportanceEvaluator(seed=SEED)
        shares = optuna.importance.get_param_importances(known, evaluator=evaluator, params=sorted(varied))
        everything = {name for trial in known.trials for name in trial.params}
        found.append(Importance(when, len(chosen), dict(shares), sorted(everything - shared)))
    return found


def interactive(study: StudyState, rows: list[Row], most: int) -> dict[str, go.Figure]:
    """Optuna's parallel coordinates and slices, by title; at the first rung, where most can be compared. Of more than
    `most` trials those are shown that chance draws."""
    targets = [target for target in _targets(study, rows) if len(target[1]) >= FEWEST]
    if not targets:
        return {}
    when, values = targets[0]
    whole = len(values)
    if whole > most:
        values = random.Random(SEED).sample(values, most)
    known = _study(study, values)
    shown = f"{whole} trials" if whole <= most else f"{most} of {whole} trials"
    named = f"{study.metric} {when}"
    figures = {
        f"Parallel coordinates: {named}, {shown}": optuna.visualization.plot_parallel_coordinate(
            known, target_name=named
        ),
        f"Slices: {named}, {shown}": optuna.visualization.plot_slice(known, target_name=named),
    }
    for figure in figures.values():
        figure.update_layout(title=None, margin={"t": 30}, font={"size": 12}, template="plotly_white")
    return figures


def _targets(study: StudyState, rows: list[Row]) -> list[tuple[str, list[tuple[Point, float]]]]:
    known = [row for row in rows if row["repeats"] is None and row["probes"]]
    if not known:
        return []
    first = min(row["probes"][0]["step"] for row in known)
    early = [(row["params"], row["probes"][0][study.metric]) for row in known if row["probes"][0]["step"] == first]
    late = [(row["params"], row["metrics"][study.metric]) for row in known if row["state"] == "COMPLETE"]
    several = any(len(row["probes"]) > 1 for row in known)
    return [*([(f"at step {first}", early)] if several else []), ("at the end", late)]


def _study(study: StudyState, values: list[tuple[Point, float]]) -> optuna.Study:
    """These trials as finished ones of an Optuna study in memory, under the parameters' short names."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    made.add_trials([_trial(study, point, value) for point, value in values])
    return made


def _trial(study: StudyState, point: Point, value: float) -> FrozenTrial:
    params: dict[str, Any] = {}
    distributions = {}

    def choose(path: str, domain: domains.Domain) -> Any:
        chosen = domain.match(point[path], path)
        params[summary.name(path)], distributions[summary.name(path)] = told(domain, chosen), distribution(domain)
        return chosen

    domains.substitute(study.space.tree, choose)
    return optuna.trial.create_trial(params=params, distributions=distributions, value=value)
