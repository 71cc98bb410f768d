"""One parameter at a time, as in the paper's Table 5; and the step at which the extra loss ends, as in its Figure 8."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysweep.formats import short
from raysweep.report.plots.style import COLOURS, CONFIDENCE, REFERENCE, figure, lower_is_better, tidy
from raysweep.space import domains
from raysweep.space.domains import Point, label
from raysweep.study.state import StudyState
from raysweep.study.summary import (
    StudySummary,
    TrialSummary,
    comparable_probes,
    params_text,
    reference_metrics,
    short_path,
    value_text,
)
from trainables.config import error_name

OURS, STOPPED, LEFT_ON = COLOURS["COMPLETE"], "#009E73", "#CC79A7"
PANELS = 3  # beside each other
NEVER = "never"


@dataclass(frozen=True)
class Panel:
    """Trials that differ from the defaults in at most one parameter.

    Attributes:
        path: the parameter's.
        step: the step at which all of them were probed; None if each is shown at its end.
        shown: the parameter's value, the trial, and its metrics there; in ascending order of the value.
    """

    path: str
    step: int | None
    shown: list[tuple[Any, TrialSummary, dict[str, float]]]

    @property
    def is_numeric(self) -> bool:
        """Whether the values have an order, so that a line between them means something."""
        return all(isinstance(value, int | float) for value, _, _ in self.shown)


def panels(study: StudyState, trials: Sequence[TrialSummary]) -> list[Panel]:
    """A panel for each searched parameter of which several values were tried while all others had their defaults. All
    trials are shown at the same step, or all at their ends. The list is empty if the defaults themselves were not
    tried."""
    defaults = study.space.defaults
    probed = [trial for trial in trials if trial.repeats is None and trial.probes]
    differing = [(trial, _differing_paths(trial.params, defaults)) for trial in probed]
    single = [(trial, paths) for trial, paths in differing if len(paths) <= 1]
    if all(paths for _, paths in single):
        return []
    step, measured = comparable_probes([trial for trial, _ in single])
    metrics = {trial.number: probe for trial, probe in measured}
    result = []
    for path, domain in domains.all_domains(study.space.tree).items():
        values = [
            (trial.params.get(path, domain.default), trial, metrics[trial.number])
            for trial, paths in single
            if paths <= {path} and trial.number in metrics
        ]
        if len(values) > 1:
            options = list(domain.options) if domain.kind == "choice" and not domain.ordered else []
            result.append(Panel(path, step, sorted(values, key=lambda shown: _rank(shown[0], options))))
    return result


def axes(study: StudyState, summary: StudySummary) -> Figure | None:
    """A panel for each parameter: our metric, and the paper's where it reports one."""
    shown = panels(study, summary.trials)
    if not shown:
        return None
    lines = -(-len(shown) // PANELS)
    picture = figure(0.7 + 3.1 * lines, f"{study.space.id}: one parameter at a time, the others at their defaults")
    grid = picture.subplots(lines, PANELS, squeeze=False, sharey=True)
    reference = next(iter(reference_metrics(study)), "")
    twins = []
    for place, (panel, cell) in enumerate(zip(shown, grid.flat, strict=False)):
        _draw_ours(cell, study, panel)
        if place % PANELS == 0:
            cell.set_ylabel(lower_is_better(study), color=OURS, fontsize=9)
        last = place % PANELS == PANELS - 1 or place == len(shown) - 1
        twins += _draw_reference(cell, panel, reference, last)
    _share_limits(twins)
    _hide(list(grid.flat)[len(shown) :])
    handles: dict[str, Any] = {}  # by label, so that each label is in the legend once
    for cell in picture.axes:
        for handle, text in zip(*cell.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    picture.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )
    return picture


def _draw_ours(cell: Axes, study: StudyState, panel: Panel) -> None:
    ticks = range(len(panel.shown))
    values = [metrics[study.metric] for _, _, metrics in panel.shown]
    errors = [CONFIDENCE * metrics.get(error_name(study.metric), 0.0) for _, _, metrics in panel.shown]
    fmt = "o-" if panel.is_numeric else "o"
    cell.errorbar(ticks, values, errors, fmt=fmt, color=OURS, capsize=3, label=f"ours: {study.metric}, 95%")
    cell.set_xticks(ticks, [_tick(value) for value, _, _ in panel.shown])
    cell.set_xlim(-0.4, len(panel.shown) - 0.6)
    when = "at their ends" if panel.step is None else f"at step {short(panel.step)}"
    cell.set_title(f"{short_path(panel.path)}, {when}", fontsize=10)
    tidy(cell)
    cell.tick_params(axis="y", colors=OURS)


def _draw_reference(cell: Axes, panel: Panel, name: str, last: bool) -> list[Axes]:
    """Draw the paper's values for the same rows, on a second axis to the right. Only the last panel of a line gets
    numbers on that axis. Returns the axis in a list, which is empty if the paper has fewer than two of the values."""
    points = [(x, trial.reference[name]) for x, (_, trial, _) in enumerate(panel.shown) if name in trial.reference]
    if len(points) < 2:
        return []
    twin: Any = cell.twinx()
    fmt = "s--" if panel.is_numeric else "s"
    text = f"published: {name}, on ImageNet"
    twin.plot(*zip(*points, strict=True), fmt, color=REFERENCE, markersize=5, fillstyle="none", label=text)
    twin.tick_params(axis="y", colors=REFERENCE, labelsize=9, labelright=last)
    twin.spines[["top"]].set_visible(False)
    if last:
        twin.set_ylabel(f"published {name}", color=REFERENCE, fontsize=9)
    return [twin]


def _share_limits(twins: list[Axes]) -> None:
    limits = [twin.get_ylim() for twin in twins]
    for twin in twins:
        twin.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _hide(cells: Iterable[Axes]) -> None:
    for cell in cells:
        cell.axis("off")


# --- the step at which the extra loss ends


def stops(study: StudyState, summary: StudySummary) -> Figure | None:
    """Runs whose extra loss ended early beside those that kept it to the end. There is a panel for each configuration
    of the other parameters."""
    groups: dict[str, list[TrialSummary]] = {}
    for trial in summary.trials:
        if trial.state == "COMPLETE" and trial.repeats is None and _stop(study, trial) is not None:
            groups.setdefault(_other_params(study, trial.params), []).append(trial)
    shown = {title: trials for title, trials in groups.items() if len({_stop(study, trial) for trial in trials}) > 1}
    if not shown:
        return None
    lines, width = -(-len(shown) // 2), 11 if len(shown) > 1 else 7
    picture = figure(0.7 + 3.6 * lines, f"{study.space.id}: when the extra loss ends", width)
    grid = picture.subplots(lines, min(2, len(shown)), squeeze=False, sharey=True)
    for cell, (title, trials) in zip(grid.flat, shown.items(), strict=False):
        _draw_stops(cell, study, trials)
        cell.set_title(title, fontsize=10)
    _hide(list(grid.flat)[len(shown) :])
    for cell in grid[:, 0]:
        cell.set_ylabel(f"{lower_is_better(study)}, 95%", fontsize=9)
    return picture


def _draw_stops(cell: Axes, study: StudyState, trials: list[TrialSummary]) -> None:
    """The metric against the step at which the loss ends; if the runs differ in length, against their length, as in
    Figure 8."""
    stop = {trial.number: min(_stop(study, trial) or 0.0, float(trial.step)) for trial in trials}
    one_length = len({trial.step for trial in trials}) == 1
    ended = [trial for trial in trials if stop[trial.number] < trial.step]
    left_on = [trial for trial in trials if stop[trial.number] == trial.step]
    place = {trial.number: stop[trial.number] if one_length else float(trial.step) for trial in trials}
    for members, colour, fmt, text in (
        (left_on, LEFT_ON, "s--", "left on to the end"),
        (ended, STOPPED, "o-", "switched off"),
    ):
        members = sorted(members, key=lambda trial: place[trial.number])
        x, y = [place[trial.number] for trial in members], [trial.metrics[study.metric] for trial in members]
        bars = [CONFIDENCE * trial.metrics.get(error_name(study.metric), 0.0) for trial in members]
        if members:
            cell.errorbar(x, y, bars, fmt=fmt, color=colour, capsize=3, label=text)
    marks = sorted(set(place.values()))
    if one_length:
        length = trials[0].step
        cell.set_xticks(marks, [short(mark) if mark < length else NEVER for mark in marks])
        cell.set_xlabel(f"step at which the loss is switched off, of {short(length)}")
    else:
        ticks = {place[trial.number]: f"{short(stop[trial.number])} → {short(trial.step)}" for trial in ended}
        cell.set_xticks(marks, [ticks.get(mark, short(mark)) for mark in marks])
        cell.set_xlabel("switched off at → steps in all")
    cell.margins(x=0.1)
    tidy(cell)
    cell.legend(fontsize=9)


def _stop(study: StudyState, trial: TrialSummary) -> float | None:
    """The optimizer step at which a trial's extra loss ends: infinity if it never does, None if it has no such loss."""
    value = next((value for path, value in trial.params.items() if path.rpartition(".")[2] == "stop"), None)
    if value is None:
        return None
    return math.inf if value == NEVER else float(study.space.steps(value))


def _other_params(study: StudyState, point: Point) -> str:
    """The parameters that the study varies, apart from the stop and the run's length."""
    kept = {p: v for p, v in point.items() if p.rpartition(".")[2] not in ("stop", "iterations") or p.count(".") > 1}
    varied = {
        path
        for trial in study.distinct
        for path in trial.point
        if trial.point[path] != kept.get(path, trial.point[path])
    }
    return params_text({path: value for path, value in kept.items() if path in varied}) or "all trials"


def _differing_paths(point: Point, defaults: Point) -> set[str]:
    """The paths at which two points differ. A path that only one point has is left out, because it follows from another
    difference."""
    return {path for path in point if path in defaults and label(point[path]) != label(defaults[path])}


def _rank(value: Any, options: list[Any]) -> tuple[float, float]:
    """A sort key: numbers in ascending order, then other values in the order of the space."""
    if isinstance(value, int | float):
        return (0.0, float(value))
    return (1.0, float(options.index(value)) if value in options else math.inf)


def _tick(value: Any) -> str:
    return short(value) if isinstance(value, int) and not isinstance(value, bool) else value_text(value)
