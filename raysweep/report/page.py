"""The report of a study as one HTML file. It needs no network, no server and no other file."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined

from raysweep.report import tables
from raysweep.report.agreement import rank_agreement
from raysweep.report.importance import interactive
from raysweep.space.space import dump
from raysweep.study.costs import Charge
from raysweep.study.state import StudyState
from raysweep.study.summary import (
    STATE_WORDS,
    StudySummary,
    TrialSummary,
    difference_from_defaults,
    params_text,
)

ROWS = 200  # of a table on the page; table.csv has all
PLOTTED = 2000  # the most trials that the interactive plots show; of more, a random sample
CAPTIONS = {
    "plot": "Learning curves of all trials",
    "published": "Our values against the published ones",
    "axes": "One parameter at a time",
    "stops": "When the extra loss ends",
    "importance": "How much each parameter matters",
    "pareto": "The metric against steps and other metrics",
    "samples": "Samples of the best trials",
}
_TEMPLATES = Environment(
    loader=PackageLoader("raysweep.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def html(study: StudyState, summary: StudySummary, pictures: dict[str, Path], lineage: str) -> str:
    """The page.

    Args:
        pictures: PNG or SVG files by the pictures' names.
        lineage: the study's lineage as SVG.
    """
    trials = tables.ordered(summary.trials)
    plots = interactive(study, summary.trials, PLOTTED)
    return _TEMPLATES.get_template(
        "report.html"
    ).render(
        study=study.space.id,
        metric=study.metric,
        best=summary.best,
        best_metric=tables.with_error(summary.best.metrics, study.metric) if summary.best else "",
        best_params=params_text(summary.best.params) if summary.best else "",
        others=summary.not_clearly_worse,
        states=Counter(STATE_WORDS[trial.state] for trial in trials),
        agreement=rank_agreement(study, summary.trials),
        cost=_hours(summary.cost),
        saved=_saved(summary.cost),
        head=tables.columns(study)[:-1],  # reasons have a table of their own
        cells=[line[:-1] for line in tables.cells(study, trials[:ROWS])],
        count=len(trials),
        pictures=[(name, CAPTIONS[name], _source(file)) for name, file in pictures.items()],
        lineage=_data_uri(lineage.encode(), "svg+xml"),
        stopped=[_pruned(study, trial) for trial in trials if trial.state == "PRUNED"][:ROWS],
        failed=[trial for trial in trials if trial.state in ("FAILED", "UNAVAILABLE")][:ROWS],
        plots={title: figure.to_html(full_html=False, include_plotlyjs=False) for title, figure in plots.items()},
        script=plotly.offline.get_plotlyjs() if plots else "",
        space=dump(study.space),
        drivers=json.dumps(study.drivers, indent=1),
        storage=summary.storage,
    )


def _source(file: Path) -> str:
    return _data_uri(file.read_bytes(), {".svg": "svg+xml", ".png": "png"}[file.suffix])


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _hours(cost: Charge) -> dict[str, str]:
    """The cells of the table of costs, in device-hours."""
    seconds = {"own": cost.own, "shared": cost.shared, "probes": cost.probes, "alone": cost.alone}
    hours = {name: f"{value / 3600:.3g}" for name, value in seconds.items()}
    return hours | {"spent": f"{float(hours['own']) + float(hours['shared']):.3g}"}


def _saved(cost: Charge) -> str:
    """The share of device time that sharing has saved; empty if nothing was spent."""
    return f"{1 - cost.spent / cost.alone:.0%}" if cost.alone else ""


def _pruned(study: StudyState, trial: TrialSummary) -> dict[str, Any]:
    """Why a trial was pruned: its last decision, with the evidence for it."""
    evidence = ""
    if trial.decisions and (decision := trial.decisions[-1]).difference is not None:
        evidence = f"worse than trial {decision.rival} by {decision.difference:.4g} ± {decision.error:.2g}"
    return {
        "trial": trial.number,
        "step": trial.step,
        "params": difference_from_defaults(study, trial.params),
        "reason": trial.reason,
        "evidence": evidence,
        "value": tables.with_error(trial.metrics, study.metric),
    }
