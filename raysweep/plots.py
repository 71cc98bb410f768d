"""A study's picture: every trial's metric against its steps, where it was stopped, and ours against the published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raysweep import results
from raysweep.results import Row, text
from raysweep.study import Study
from trainables.spec import error_name

# Okabe and Ito's colours, safe for colour-blind readers.
COLOURS = {"COMPLETE": "#0072B2", "PRUNED": "#999999", "FAILED": "#D55E00", "RUNNING": "#E69F00"}
BEST = "#009E73"


def save(study: Study, rows: list[Row], best: Row | None, path: Path) -> None:
    """Write the picture; the ending decides its format."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [row for row in rows if row["repeats"] is None and row["probes"]]
    compared = [row for row in shown if row["published"]]
    left, *right = figure.subplots(1, 2 if compared else 1, squeeze=False)[0]
    _curves(left, study, shown, best)
    if right:
        _against_published(right[0], study, compared, best)
    figure.suptitle(f"{study.space.id}: {_verdict(study, best)}", fontsize=11)
    figure.savefig(path, dpi=150)


def save_fronts(study: Study, rows: list[Row], path: Path) -> None:
    """Write a picture of the deciding metric against what it is traded for, with the trials that none beats in both."""
    tradeoffs = results.tradeoffs(study, rows)
    figure = Figure(figsize=(5.5 * len(tradeoffs), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, (members, places)) in zip(
        figure.subplots(1, len(tradeoffs), squeeze=False)[0], tradeoffs.items(), strict=True
    ):
        for trial, x in places.items():
            axes.plot(x, rows[trial]["metrics"][study.metric], "o", color=COLOURS[rows[trial]["state"]], markersize=5)
        front = sorted((places[trial], rows[trial]["metrics"][study.metric], trial) for trial in members)
        axes.plot([x for x, _, _ in front], [y for _, y, _ in front], "o--", color=BEST, linewidth=1, label="front")
        for x, y, trial in front:
            axes.annotate(f"{trial}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        better = "fewer" if name == "steps" else "higher"
        axes.set_xlabel(f"{'steps, with the teachers’' if name == 'steps' else name} ({better} is better)")
        axes.set_ylabel(f"{study.metric} (lower is better)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=9)
    figure.suptitle(f"{study.space.id}: trials that no other beats in both, by number", fontsize=11)
    figure.savefig(path, dpi=150)


def _curves(axes: Axes, study: Study, rows: list[Row], best: Row | None) -> None:
    for row in sorted(rows, key=lambda row: row["trial"] == (best or {}).get("trial")):
        steps = [probe["step"] for probe in row["probes"]]
        values = [probe[study.metric] for probe in row["probes"]]
        is_best = best is not None and row["trial"] == best["trial"]
        colour = BEST if is_best else COLOURS[row["state"]]
        errors = [1.96 * probe.get(error_name(study.metric), 0.0) for probe in row["probes"]]
        width, alpha = (2.4, 1) if is_best else (1.2, 0.75)
        axes.errorbar(steps, values, errors, color=colour, linewidth=width, elinewidth=1, capsize=2, alpha=alpha)
        marker = {"COMPLETE": "o", "FAILED": "X"}.get(row["state"], "v")
        axes.plot(steps[-1], values[-1], marker, color=colour, markersize=8 if is_best else 5)
    counts = {state: sum(row["state"] == state for row in rows) for state in COLOURS}
    for state, count in counts.items():
        if count:
            marker = {"COMPLETE": "o", "FAILED": "X"}.get(state, "v")
            axes.plot([], [], marker, linestyle="-", color=COLOURS[state], label=f"{state.lower()} ({count})")
    if best:
        axes.plot([], [], "o-", color=BEST, linewidth=2.4, label=f"best (trial {best['trial']})")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"{study.metric} (lower is better; bars: 95% of the probe's own noise)")
    axes.set_xscale("log", base=2)
    ticks = sorted({probe["step"] for row in rows for probe in row["probes"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(fontsize=9)


def _against_published(axes: Axes, study: Study, rows: list[Row], best: Row | None) -> None:
    """Enqueued rows: a reproduction's at their ends, an exploration's at the first rung, which all have reached."""
    reproduced = study.space.search.mode == "reproduce"
    when = "its end" if reproduced else f"step {min(row['probes'][0]['step'] for row in rows)}"
    name = results.published(study)[0]
    points: list[tuple[float, float, Row]] = [
        (row["published"][name], row["probes"][-1 if reproduced else 0][study.metric], row)
        for row in rows
        if name in row["published"]
    ]
    for x, y, row in points:
        is_best = best is not None and row["trial"] == best["trial"]
        axes.plot(x, y, "o", color=BEST if is_best else COLOURS[row["state"]], markersize=8 if is_best else 6)
        axes.annotate(f"row {row['row']}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set_xlabel(f"published {name}, on ImageNet")
    axes.set_ylabel(f"ours at {when}: {study.metric}")
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.25)


def _verdict(study: Study, best: Row | None) -> str:
    if best is None:
        return "no trial has finished"
    point: dict[str, Any] = best["params"]
    told = ", ".join(f"{path.rpartition('.')[2]} {text(value)}" for path, value in point.items())
    return f"best is trial {best['trial']} ({told})"
