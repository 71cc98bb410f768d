"""Which parameters matter: fANOVA over the metrics of a study, and Optuna's interactive plots of them.

Optuna leaves pruned trials out, so a parameter whose bad values are pruned early looks unimportant. Therefore the
importance is computed twice: for the metric at the first rung, which all trials reach, and for the metric at the end.
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
from raysweep.study.optuna_view import distribution, optuna_value
from raysweep.study.state import StudyState
from raysweep.study.summary import TrialSummary, short_path

MOST = 400  # trials; of more, a random sample is taken, since fANOVA's time grows with their square
FEWEST = 4
SEED = 0


@dataclass(frozen=True)
class Importance:
    """The share of a metric's variance that each parameter explains.

    Attributes:
        when: in words, at which step the metric was measured.
        trials: how many trials it was computed from.
        shares: by the parameter's short path, in descending order; they sum to 1.
        left_out: parameters that only some of these trials have.
    """

    when: str
    trials: int
    shares: dict[str, float]
    left_out: list[str]


@dataclass(frozen=True)
class _Target:
    """A metric to explain: the points and their values."""

    when: str
    values: list[tuple[Point, float]]


def importances(study: StudyState, trials: list[TrialSummary]) -> list[Importance]:
    """The importances at the first rung and at the end. An importance is left out if it would have too few trials, or
    if no value or no parameter differs."""
    result = []
    for target in _targets(study, trials):
        if len(target.values) < FEWEST or len({value for _, value in target.values}) < 2:
            continue
        sample = _sample(target.values, MOST)
        finished = _finished_study(study, sample)
        shared = set.intersection(*(set(trial.params) for trial in finished.trials))
        varied = [name for name in shared if len({str(trial.params[name]) for trial in finished.trials}) > 1]
        if not varied:
            continue
        evaluator = FanovaImportanceEvaluator(seed=SEED)
        shares = optuna.importance.get_param_importances(finished, evaluator=evaluator, params=sorted(varied))
        everything = {name for trial in finished.trials for name in trial.params}
        result.append(Importance(target.when, len(sample), dict(shares), sorted(everything - shared)))
    return result


def interactive(study: StudyState, trials: list[TrialSummary], most: int) -> dict[str, go.Figure]:
    """Optuna's parallel coordinates and slices, by title. They show the first rung if enough trials reached it, because
    the most trials can be compared there; otherwise the end.

    Args:
        most: how many trials to show; of more, a random sample.
    """
    targets = [target for target in _targets(study, trials) if len(target.values) >= FEWEST]
    if not targets:
        return {}
    target, whole = targets[0], len(targets[0].values)
    finished = _finished_study(study, _sample(target.values, most))
    shown = f"{whole} trials" if whole <= most else f"{most} of {whole} trials"
    metric = f"{study.metric} {target.when}"
    figures = {
        f"Parallel coordinates: {metric}, {shown}": optuna.visualization.plot_parallel_coordinate(
            finished, target_name=metric
        ),
        f"Slices: {metric}, {shown}": optuna.visualization.plot_slice(finished, target_name=metric),
    }
    for figure in figures.values():
        figure.update_layout(title=None, margin={"t": 30}, font={"size": 12}, template="plotly_white")
    return figures


def _targets(study: StudyState, trials: list[TrialSummary]) -> list[_Target]:
    probed = [trial for trial in trials if trial.repeats is None and trial.probes]
    if not probed:
        return []
    first = min(step for trial in probed for step in trial.probes)
    early = [(trial.params, trial.probes[first][study.metric]) for trial in probed if first in trial.probes]
    late = [(trial.params, trial.metrics[study.metric]) for trial in probed if trial.state == "COMPLETE"]
    several = any(len(trial.probes) > 1 for trial in probed)
    return [*([_Target(f"at step {first}", early)] if several else []), _Target("at the end", late)]


def _sample(values: list[tuple[Point, float]], most: int) -> list[tuple[Point, float]]:
    return values if len(values) <= most else random.Random(SEED).sample(values, most)


def _finished_study(study: StudyState, values: list[tuple[Point, float]]) -> optuna.Study:
    """An Optuna study in memory with these trials as finished ones, under the parameters' short paths."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    finished = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    finished.add_trials([_finished_trial(study, point, value) for point, value in values])
    return finished


def _finished_trial(study: StudyState, point: Point, value: float) -> FrozenTrial:
    params: dict[str, Any] = {}
    distributions = {}

    def choose(path: str, domain: domains.Domain) -> Any:
        chosen, name = domain.match(point[path], path), short_path(path)
        params[name], distributions[name] = optuna_value(domain, chosen), distribution(domain)
        return chosen

    domains.substitute(study.space.tree, choose)
    return optuna.trial.create_trial(params=params, distributions=distributions, value=value)
