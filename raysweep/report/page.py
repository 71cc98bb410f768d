"""A study's report as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined

from raysweep.report import tables
from raysweep.report.agreement import agreement
from raysweep.report.importance import interactive
from raysweep.space.space import dump
from raysweep.study import summary
from raysweep.study.state import StudyState
from raysweep.study.summary import Row

MOST = 200  # rows of a table: the rest is in the CSV
DRAWN = 2000  # trials up to which the interactive plots show every one
CAPTIONS = {
    "plot": "Every trial on its way",
    "published": "Ours beside the published values",
    "axes": "One parameter at a time",
    "stops": "When the extra loss ends",
    "importance": "What matters",
    "pareto": "What it is traded for",
    "samples": "What they draw",
}
_TEMPLATES = Environment(
    loader=PackageLoader("raysweep.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(study: StudyState, result: dict[str, Any], pictures: dict[str, Path], lineage: str) -> str:
    """The page. `pictures` are files by name, PNG or SVG; `lineage` is the study's lineage as SVG."""
    rows = tables.ordered(result["trials"], study.metric)
    plots = interactive(study, result["trials"], DRAWN)
    return _TEMPLATES.get_template(
        "report.html"
    ).render(
        study=study.space.id,
        metric=study.metric,
        best=result["best"],
        best_metric=tables.with_error(result["best"]["metrics"], study.metric) if result["best"] else "",
        best_params=_params(result["best"]) if result["best"] else "",
        others=result["not_clearly_worse"],
        states=Counter(tables.STATES[row["state"]] for row in rows),
        agreement=agreement(study, result["trials"]),
        cost={name: f"{seconds / 3600:.3g}" for name, seconds in result["cost"].items()},
        saved=_saved(result["cost"]),
        head=tables.columns(study)[:-1],  # reasons have a table of their own
        cells=[line[:-1] for line in tables.cells(study, rows[:MOST])],
        count=len(rows),
        pictures=[(name, CAPTIONS[name], _source(file)) for name, file in pictures.items()],
        lineage=_data(lineage.encode(), "svg+xml"),
        stopped=[_stopped(study, row) for row in rows if row["state"] == "PRUNED"][:MOST],
        failed=[row for row in rows if row["state"] in ("FAILED", "UNAVAILABLE")][:MOST],
        plots={title: figure.to_html(full_html=False, include_plotlyjs=False) for title, figure in plots.items()},
        script=plotly.offline.get_plotlyjs() if plots else "",
        space=dump(study.space),
        drivers=json.dumps(study.drivers, indent=1),
        storage=result["storage"],
    )


def _source(file: Path) -> str:
    return _data(file.read_bytes(), {".svg": "svg+xml", ".png": "png"}[file.suffix])


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _params(row: Row) -> str:
    return ", ".join(f"{summary.name(path)} {summary.text(value)}" for path, value in row["params"].items())


def _saved(cost: dict[str, float]) -> str:
    """The share of device time that sharing has saved."""
    spent, alone = cost["own_device_s"] + cost["shared_device_s"], cost["without_sharing_device_s"]
    return f"{1 - spent / alone:.0%}" if alone else ""


def _stopped(study: StudyState, row: Row) -> dict[str, Any]:
    """Why a trial was pruned: its last decision with the evidence."""
    decision = row["decisions"][-1] if row["decisions"] else {}
    evidence = ""
    if decision.get("difference") is not None:
        evidence = f"worse than trial {decision['rival']} by {decision['difference']:.4g} ± {decision['error']:.2g}"
    return {
        "trial": row["trial"],
        "steps": row["steps"],
        "params": summary.changed(study, row["params"]),
        "reason": row["reason"],
    } | {
        "evidence": evidence,
        "value": tables.with_error(row["metrics"], study.metric),
    }
