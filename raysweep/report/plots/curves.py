"""Every trial's metric on its way: against steps and against what it cost; and ours against the published."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from raysweep.formats import short
from raysweep.report.agreement import agreement
from raysweep.report.plots.style import BEST, COLOURS, CONFIDENCE, INK, MARKERS, figure, lower_is_better, tidy
from raysweep.space import runs
from raysweep.study.state import StudyState
from raysweep.study.summary import Row, name, text
from trainables.config import error_name

BARS = 60  # trials up to which each has its error bars
TICKS = 9  # rungs up to which each is written


def curves(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """The metric against optimizer steps, with rungs, stops and errors; and against device-hours of training."""
    rows = [row for row in result["trials"] if row["repeats"] is None and row["probes"]]
    if not rows:
        return None
    best = result["best"] and result["best"]["trial"]
    steps = {row["trial"]: [float(probe["step"]) for probe in row["probes"]] for row in rows}
    hours = _hours(study, rows)
    unit, per_hour = ("minutes", 60.0) if hours and max(map(max, hours.values())) < 1 else ("hours", 1.0)
    picture = figure(4.8, f"{study.space.id}: {_verdict(result['best'])}")
    axes = picture.subplots(1, 2 if hours else 1, sharey=True, squeeze=False)[0]
    _draw(axes[0], study, rows, steps, best, bars=True)
    _rungs(axes[0], rows)
    axes[0].set_ylabel(f"{lower_is_better(study)}; bars: 95% of the probe’s own noise", fontsize=9)
    axes[0].set_xlabel("optimizer steps" + ("; dotted: rungs" if any(row["decisions"] for row in rows) else ""))
    if hours:
        spent = {trial: [hour * per_hour for hour in places] for trial, places in hours.items()}
        _draw(axes[1], study, [row for row in rows if row["trial"] in spent], spent, best)
        axes[1].set_xlabel(f"device-{unit} of the trial’s training and its teacher’s, without sharing")
        axes[1].set_xlim(left=0)
    _legend(axes[0], rows, best)
    return picture


def published(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """Ours against the published metric of the same rows, and how well the orders agree."""
    found = agreement(study, result["trials"])
    if found is None:
        return None
    when = "at its end" if found.step is None else f"at step {short(found.step)}"
    picture = figure(5.2, f"{study.space.id}: do ours rank as published?\n{found}", width=7.5)
    axes = picture.subplots()
    best = result["best"] and result["best"]["trial"]
    for row, theirs, ours in found.pairs:
        error = next((p.get(error_name(study.metric), 0.0) for p in row["probes"] if p[study.metric] == ours), 0.0)
        colour = BEST if row["trial"] == best else COLOURS[row["state"]]
        axes.errorbar(theirs, ours, CONFIDENCE * error, fmt=MARKERS[row["state"]], color=colour, elinewidth=0.8)
    axes.set_xlabel(f"published {found.published}, on ImageNet")
    axes.set_ylabel(f"ours {when}: {study.metric}, 95%")
    axes.ticklabel_format(useOffset=False)
    tidy(axes)
    _number(axes, [(theirs, ours, str(row["row"])) for row, theirs, ours in found.pairs])
    axes.set_title("numbers: rows of the search space", fontsize=9, color="#555555")
    return picture


def _draw(
    axes: Axes, study: StudyState, rows: list[Row], places: dict[int, list[float]], best: int | None, bars: bool = False
) -> None:
    quiet = max(0.06, min(0.75, 12 / len(rows)))
    many = len(rows) > BARS
    for state, colour in COLOURS.items():
        lines = [_points(row, places, study) for row in rows if row["state"] == state and row["trial"] != best]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=1.2, alpha=quiet, rasterized=many))
        ends = np.array([line[-1] for line in lines]).reshape(-1, 2)
        size, alpha, marker = 6 if many else 26, min(1, 2 * quiet), MARKERS[state]
        axes.scatter(
            ends[:, 0], ends[:, 1], size, colour, marker=marker, alpha=alpha, linewidths=0, zorder=3, rasterized=many
        )
    for row in rows:
        if row["trial"] == best:
            axes.plot(*zip(*_points(row, places, study), strict=True), "o-", color=BEST, linewidth=2.4, zorder=4)
    if bars:
        _bars(axes, study, [row for row in rows if not many or row["trial"] == best], places, best)
    axes.autoscale()
    tidy(axes)


def _bars(axes: Axes, study: StudyState, rows: list[Row], places: dict[int, list[float]], best: int | None) -> None:
    """Error bars, a little beside each other where many trials were probed at the same step."""
    for number, row in enumerate(rows):
        aside = 1.0 if row["trial"] == best else 1 + 0.09 * ((number + 0.5) / len(rows) - 0.5)
        x, y = zip(*_points(row, places, study), strict=True)
        errors = [CONFIDENCE * probe.get(error_name(study.metric), 0.0) for probe in row["probes"]]
        colour = BEST if row["trial"] == best else COLOURS[row["state"]]
        thick = 1.6 if row["trial"] == best else 0.7
        axes.errorbar([place * aside for place in x], y, errors, fmt="none", alpha=0.6, ecolor=colour, elinewidth=thick)


def _points(row: Row, places: dict[int, list[float]], study: StudyState) -> list[tuple[float, float]]:
    return list(zip(places[row["trial"]], (probe[study.metric] for probe in row["probes"]), strict=True))


def _rungs(axes: Axes, rows: list[Row]) -> None:
    steps = sorted({probe["step"] for row in rows for probe in row["probes"]})
    axes.set_xscale("log", base=2)
    shown = steps if len(steps) <= TICKS else steps[:: -(-len(steps) // TICKS)]
    axes.set_xticks(shown, [short(step) for step in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    for step in {decision["step"] for row in rows for decision in row["decisions"]}:
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":", alpha=0.6, zorder=0)


def _legend(axes: Axes, rows: list[Row], best: int | None) -> None:
    words = {
        "COMPLETE": "complete",
        "PRUNED": "pruned: ranked too low at its last rung",
        "FAILED": "failed",
        "RUNNING": "unfinished",
    }
    for state, told in words.items():
        if count := sum(row["state"] == state for row in rows):
            axes.plot([], [], MARKERS[state], linestyle="-", color=COLOURS[state], label=f"{told} ({count})")
    if best is not None:
        axes.plot([], [], "o-", color=BEST, linewidth=2.4, label=f"best (trial {best})")
    axes.legend(fontsize=9, loc="upper right")


def _hours(study: StudyState, rows: list[Row]) -> dict[int, list[float]] | None:
    """Device-hours by trial and probe, of those whose manifests are still there; None where none are."""
    teachers: dict[str, float] = {}
    found = {}
    for row in rows:
        run = study.run(study.trials[row["trial"]])
        if not (way := study.store.way(run, row["steps"])):
            continue
        total = 0.0
        for teacher in runs.teachers(run):
            key = f"{row['teacher_key']} {teacher.step}"
            if key not in teachers:
                teachers[key] = sum(map(_device_s, study.store.way(teacher.run, teacher.step)))
            total += teachers[key]
        spent = [(manifest["step"], _device_s(manifest)) for manifest in way]
        found[row["trial"]] = [
            (total + sum(seconds for end, seconds in spent if end <= probe["step"])) / 3600 for probe in row["probes"]
        ]
    return found or None


def _device_s(manifest: dict[str, Any]) -> float:
    return float(manifest.get("seconds", 0.0)) * int(manifest.get("workers", 1))


def _number(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Write a number beside each point, where the others leave room."""
    axes.figure.canvas.draw()
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [np.array(place) for place in places]
    for (x, y, told), place in zip(points, places, strict=True):
        offsets = [
            np.array(offset)
            for offset in ((16, 8), (-16, 8), (16, -12), (-16, -12), (0, 20), (0, -24), (28, 0), (-28, 0))
        ]
        room = [min(float(np.linalg.norm(place + offset - other)) for other in taken) for offset in offsets]
        best = next((i for i, free in enumerate(room) if free > 13), int(np.argmax(room)))
        taken.append(place + offsets[best])
        shift = offsets[best] * 72 / axes.figure.dpi
        axes.annotate(
            told, (x, y), xytext=tuple(shift), textcoords="offset points", fontsize=8, ha="center", va="center"
        )


def _verdict(best: Row | None) -> str:
    if best is None:
        return "no trial has finished"
    told = ", ".join(f"{name(path).rpartition('.')[2]} {text(value)}" for path, value in best["params"].items())
    return f"best is trial {best['trial']}\n({told})"
