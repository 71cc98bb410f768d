"""One parameter at a time, as in the paper's Table 5; and when the extra loss ends, as in its Figure 8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysweep.formats import short
from raysweep.report.plots.style import COLOURS, CONFIDENCE, PUBLISHED, figure, lower_is_better, tidy
from raysweep.space import domains
from raysweep.space.domains import Point, label
from raysweep.study import summary
from raysweep.study.state import StudyState
from raysweep.study.summary import Row, name, text
from trainables.config import error_name

OURS, STOPPED, LEFT_ON = COLOURS["COMPLETE"], "#009E73", "#CC79A7"
PANELS = 3  # beside each other
NEVER = "never"


@dataclass(frozen=True)
class Panel:
    """Trials that differ in one parameter alone: its values, and for each the trial with the probe to show.

    Attributes:
        step: at which all were probed; None: each at its end.
    """

    path: str
    step: int | None
    shown: list[tuple[Any, Row, dict[str, Any]]]


def panels(study: StudyState, rows: Sequence[Row]) -> list[Panel]:
    """Each searched parameter with the trials that differ from the defaults in it alone, the defaults among them; all
    of them at the same step, or all at their ends."""
    base = study.space.defaults
    known = [row for row in rows if row["repeats"] is None and row["probes"]]
    alone = [(row, differs) for row in known if len(differs := _differs(row["params"], base)) <= 1]
    if all(differs for _, differs in alone):  # the defaults themselves were not tried
        return []
    step, measured = summary.comparable([row for row, _ in alone])
    probes = {row["trial"]: probe for row, probe in measured}
    found = []
    for path, domain in domains.all_domains(study.space.tree).items():
        values = [
            (row["params"].get(path, domain.default), row, probes[row["trial"]])
            for row, differs in alone
            if differs <= {path} and row["trial"] in probes
        ]
        if len(values) > 1:
            order = list(domain.options) if domain.kind == "choice" and not domain.ordered else []
            found.append(Panel(path, step, sorted(values, key=lambda each: _place(each[0], order))))
    return found


def axes(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """A panel per parameter: ours, and the published values where there are some."""
    found = panels(study, result["trials"])
    if not found:
        return None
    lines = -(-len(found) // PANELS)
    picture = figure(0.7 + 3.1 * lines, f"{study.space.id}: one parameter at a time, the others at their defaults")
    grid = picture.subplots(lines, PANELS, squeeze=False, sharey=True)
    twins = []
    for place, (panel, each) in enumerate(zip(found, grid.flat, strict=False)):
        _ours(each, study, panel)
        if place % PANELS == 0:
            each.set_ylabel(lower_is_better(study), color=OURS, fontsize=9)
        last = place % PANELS == PANELS - 1 or place == len(found) - 1
        twins += _theirs(each, panel, next(iter(summary.published(study)), ""), last)
    _share(twins)
    for each in list(grid.flat)[len(found) :]:
        each.axis("off")
    handles, told = [], []
    for each in picture.axes:
        for handle, words in zip(*each.get_legend_handles_labels(), strict=True):
            if words not in told:
                handles.append(handle)
                told.append(words)
    picture.legend(handles, told, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return picture


def _ours(each: Axes, study: StudyState, panel: Panel) -> None:
    ticks = range(len(panel.shown))
    values = [probe[study.metric] for _, _, probe in panel.shown]
    errors = [CONFIDENCE * probe.get(error_name(study.metric), 0.0) for _, _, probe in panel.shown]
    fmt = "o-" if _in_order(panel) else "o"
    each.errorbar(ticks, values, errors, fmt=fmt, color=OURS, capsize=3, label=f"ours: {study.metric}, 95%")
    each.set_xticks(ticks, [_told(value) for value, _, _ in panel.shown])
    each.set_xlim(-0.4, len(panel.shown) - 0.6)
    when = "at their ends" if panel.step is None else f"at step {short(panel.step)}"
    each.set_title(f"{name(panel.path)}, {when}", fontsize=10)
    tidy(each)
    each.tick_params(axis="y", colors=OURS)


def _theirs(each: Axes, panel: Panel, named: str, last: bool) -> list[Axes]:
    """What was published for the same rows, on an axis of its own to the right, written at the last of a line."""
    points = [(x, row["published"][named]) for x, (_, row, _) in enumerate(panel.shown) if named in row["published"]]
    if len(points) < 2:
        return []
    twin: Any = each.twinx()
    fmt = "s--" if _in_order(panel) else "s"
    label = f"published: {named}, on ImageNet"
    twin.plot(*zip(*points, strict=True), fmt, color=PUBLISHED, markersize=5, fillstyle="none", label=label)
    twin.tick_params(axis="y", colors=PUBLISHED, labelsize=9, labelright=last)
    twin.spines[["top"]].set_visible(False)
    if last:
        twin.set_ylabel(f"published {named}", color=PUBLISHED, fontsize=9)
    return [twin]


def _share(twins: list[Axes]) -> None:
    limits = [twin.get_ylim() for twin in twins]
    for twin in twins:
        twin.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _in_order(panel: Panel) -> bool:
    return all(isinstance(value, int | float) for value, _, _ in panel.shown)


def stops(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """Runs whose extra loss ended early beside those where it was left on: a panel per configuration otherwise."""
    groups: dict[str, list[Row]] = {}
    for row in result["trials"]:
        if row["state"] == "COMPLETE" and row["repeats"] is None and _stop(study, row) is not None:
            groups.setdefault(_but_for_the_stop(study, row["params"]), []).append(row)
    shown = {told: rows for told, rows in groups.items() if len({_stop(study, row) for row in rows}) > 1}
    if not shown:
        return None
    lines = -(-len(shown) // 2)
    picture = figure(
        0.7 + 3.6 * lines, f"{study.space.id}: when the extra loss ends", width=11 if len(shown) > 1 else 7
    )
    grid = picture.subplots(lines, min(2, len(shown)), squeeze=False, sharey=True)
    for each, (told, rows) in zip(grid.flat, shown.items(), strict=False):
        _stops(each, study, rows)
        each.set_title(told, fontsize=10)
    for each in list(grid.flat)[len(shown) :]:
        each.axis("off")
    for each in grid[:, 0]:
        each.set_ylabel(f"{lower_is_better(study)}, 95%", fontsize=9)
    return picture


def _stops(each: Axes, study: StudyState, rows: list[Row]) -> None:
    """Against the steps in all, as in Figure 8, where those differ; else against the stop."""
    stop = {row["trial"]: min(_stop(study, row) or 0.0, float(row["steps"])) for row in rows}
    one_length = len({row["steps"] for row in rows}) == 1
    ended = [row for row in rows if stop[row["trial"]] < row["steps"]]
    left_on = [row for row in rows if stop[row["trial"]] == row["steps"]]
    place = {row["trial"]: stop[row["trial"]] if one_length else float(row["steps"]) for row in rows}
    for members, colour, fmt, told in (
        (left_on, LEFT_ON, "s--", "left on to the end"),
        (ended, STOPPED, "o-", "switched off"),
    ):
        members = sorted(members, key=lambda row: place[row["trial"]])
        y = [row["metrics"][study.metric] for row in members]
        bars = [CONFIDENCE * row["metrics"].get(error_name(study.metric), 0.0) for row in members]
        if members:
            each.errorbar(
                [place[row["trial"]] for row in members], y, bars, fmt=fmt, color=colour, capsize=3, label=told
            )
    marks = sorted(set(place.values()))
    if one_length:
        each.set_xticks(marks, [short(mark) if mark < rows[0]["steps"] else NEVER for mark in marks])
        each.set_xlabel(f"step at which the loss is switched off, of {short(rows[0]['steps'])}")
    else:
        ticks = {place[row["trial"]]: f"{short(stop[row['trial']])} → {short(row['steps'])}" for row in ended}
        each.set_xticks(marks, [ticks.get(mark, short(mark)) for mark in marks])
        each.set_xlabel("switched off at → steps in all")
    each.margins(x=0.1)
    tidy(each)
    each.legend(fontsize=9)


def _stop(study: StudyState, row: Row) -> float | None:
    """The optimizer step at which a trial's extra loss ends; infinite where it never does, None where it has none."""
    found = [value for path, value in row["params"].items() if path.rpartition(".")[2] == "stop"]
    if not found:
        return None
    return math.inf if found[0] == NEVER else float(study.space.steps(found[0]))


def _but_for_the_stop(study: StudyState, point: Point) -> str:
    kept = {p: v for p, v in point.items() if p.rpartition(".")[2] not in ("stop", "iterations") or p.count(".") > 1}
    several = {
        path
        for trial in study.distinct
        for path in trial.point
        if trial.point[path] != kept.get(path, trial.point[path])
    }
    return ", ".join(f"{name(path)} {text(value)}" for path, value in kept.items() if path in several) or "all trials"


def _differs(point: Point, base: Point) -> set[str]:
    """The paths at which two points differ; what only one of them has is a consequence of that."""
    return {path for path in point if path in base and label(point[path]) != label(base[path])}


def _place(value: Any, order: list[Any]) -> tuple[float, float]:
    if isinstance(value, int | float):
        return (0.0, float(value))
    return (1.0, float(order.index(value)) if value in order else math.inf)


def _told(value: Any) -> str:
    return short(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
