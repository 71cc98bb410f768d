"""A study's table: our numbers beside the published ones, as Markdown, CSV and on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from raysweep.study import summary
from raysweep.study.state import StudyState
from raysweep.study.summary import Row
from trainables.config import ProbeSpec, error_name

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAILED": "failed",
    "UNAVAILABLE": "unavailable",
    "RUNNING": "unfinished",
}


def columns(study: StudyState, errors_apart: bool = False) -> list[str]:
    """The table's head: the row's number in the paper, the searched parameters, what it cost in device-hours (its own,
    and its share of work that several needed), ours, theirs, what became of it."""
    paths = [summary.name(path) for path in summary.searched(study)]
    probe = study.space.probe
    published = [f"published {name}" for name in summary.published(study)]
    ours = probe.reported if errors_apart else probe.measured
    return ["trial", "row", *paths, "steps", "own hours", "shared hours", *ours, *published, "state", "reason"]


def cells(study: StudyState, rows: Iterable[Row], errors_apart: bool = False) -> Iterator[list[str]]:
    """What stands under `columns`, trial by trial."""
    paths, published = summary.searched(study), summary.published(study)
    for row in rows:
        yield _cells(study.space.probe, row, paths, published, errors_apart)


def _cells(probe: ProbeSpec, row: Row, paths: list[str], published: list[str], errors_apart: bool) -> list[str]:
    params = [summary.text(row["params"][path]) if path in row["params"] else "" for path in paths]
    metrics = row["metrics"]
    if errors_apart:
        ours = [_number(metrics.get(name)) for name in probe.reported]
    else:
        ours = [with_error(metrics, name) for name in probe.measured]
    number = "" if row["row"] is None else str(row["row"])
    return [
        str(row["trial"]),
        number,
        *params,
        str(row["steps"]),
        *(f"{row['cost'][which] / 3600:.3g}" for which in ("own_device_s", "shared_device_s")),
        *ours,
        *(_number(row["published"].get(name)) for name in published),
        STATES[row["state"]],
        row["reason"],
    ]


def ordered(rows: list[Row], metric: str) -> list[Row]:
    """Enqueued rows in the file's order, then the others: further first, better first."""
    own = [row for row in rows if row["row"] is None]
    own.sort(key=lambda row: (-row["steps"], row["metrics"].get(metric, float("inf"))))
    return sorted((row for row in rows if row["row"] is not None), key=lambda row: row["row"]) + own


def markdown(study: StudyState, rows: list[Row]) -> str:
    """The table as Markdown."""
    return piped(columns(study), cells(study, rows))


def piped(head: list[str], rows: Iterable[list[str]]) -> str:
    """Any table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def as_csv(study: StudyState, rows: list[Row]) -> str:
    """The table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns(study, errors_apart=True))
    writer.writerows(cells(study, rows, errors_apart=True))
    return out.getvalue()


def frame(study: StudyState, rows: list[Row]) -> pd.DataFrame:
    """A line for each probe of each trial: its parameters, the step, the metrics with their standard errors."""
    return pd.DataFrame(
        {
            "trial": row["trial"],
            **{summary.name(path): summary.text(value) for path, value in row["params"].items()},
            **probe,
            "state": STATES[row["state"]],
        }
        for row in rows
        for probe in row["probes"]
    )


def latex(study: StudyState, rows: list[Row], best: Row | None) -> str:
    """The table as LaTeX, for `\\usepackage{booktabs}`: parameters, ours with standard errors, the published; the best
    in bold, what did not come to its end with a word."""
    leave_out = {"trial", "own hours", "shared hours", "reason"}
    head = columns(study)
    kept = [place for place, name in enumerate(head) if name not in leave_out]
    lines = [
        f"% {study.space.id}",
        f"\\begin{{tabular}}{{{''.join('l' if head[place] in ('state',) else 'r' for place in kept)}}}",
        "\\toprule",
        " & ".join(_tex(head[place]) for place in kept) + " \\\\",
        "\\midrule",
    ]
    shown = [row for row in rows if row["repeats"] is None]
    for row, whole in zip(shown, cells(study, shown), strict=True):
        cell = [_tex(whole[place]) for place in kept]
        if best and row["trial"] == best["trial"]:
            cell = [f"\\textbf{{{each}}}" if each else "" for each in cell]
        lines.append(" & ".join(cell) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def terminal(study: StudyState, rows: list[Row], best: int | None) -> Table:
    """The table for a terminal: what differs from the defaults, without the reasons; the best trial stands out."""
    metric = study.metric
    published = summary.published(study)[:1]
    table = Table(title=study.space.id, title_justify="left")
    for name in (
        "trial",
        "row",
        "configuration",
        "steps",
        metric,
        *(f"published {name}" for name in published),
        "state",
    ):
        table.add_column(name, justify="left" if name in ("configuration", "state") else "right")
    for row in rows:
        told = summary.changed(study, row["params"])
        cell = [_number(row["published"].get(name)) for name in published]
        number, value = "" if row["row"] is None else str(row["row"]), with_error(row["metrics"], metric)
        style = "bold green" if row["trial"] == best else _style(row)
        table.add_row(
            str(row["trial"]), number, told, str(row["steps"]), value, *cell, STATES[row["state"]], style=style
        )
    return table


def with_error(metrics: Mapping[str, float], name: str) -> str:
    """A metric with its standard error, as people write it."""
    value, error = metrics.get(name), metrics.get(error_name(name))
    return _number(value) if value is None or error is None else f"{value:.2f} ± {error:.2f}"


def _style(row: Row) -> str | None:
    return "dim" if row["state"] in ("PRUNED", "UNAVAILABLE") else "red" if row["state"] == "FAILED" else None


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "±": "$\\pm$",
    "→": "$\\to$",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"
