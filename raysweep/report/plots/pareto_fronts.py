"""The deciding metric against a second quantity, with the Pareto front of both."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysweep.report.plots.style import BEST, COLOURS, MARKERS, figure, lower_is_better, tidy
from raysweep.study.state import StudyState
from raysweep.study.summary import STATE_WORDS, Front, StudySummary

NUMBERED = 12  # up to this many members of a front are labelled with their trials' numbers


def fronts(study: StudyState, summary: StudySummary) -> Figure | None:
    """A panel for each front: every trial, and the front of the trials that no other trial dominates."""
    if not any(front.values for front in summary.pareto.values()):
        return None
    title = f"{study.space.id}: trials on the Pareto front, by number"
    picture = figure(4.8, title, 5.5 * len(summary.pareto))
    panels = picture.subplots(1, len(summary.pareto), squeeze=False)[0]
    for axes, (name, front) in zip(panels, summary.pareto.items(), strict=True):
        _draw(axes, summary, front)
        quantity, better = ("steps, with the teachers’", "fewer") if name == "steps" else (name, "higher")
        axes.set_xlabel(f"{quantity} ({better} is better)")
        axes.set_ylabel(lower_is_better(study))
        tidy(axes)
        axes.legend(fontsize=9)
    return picture


def _draw(axes: Axes, summary: StudySummary, front: Front) -> None:
    metric = {trial.number: trial.metrics[summary.metric] for trial in summary.trials if trial.number in front.values}
    for state, colour in COLOURS.items():
        members = [number for number in metric if summary.trials[number].state == state]
        if members:
            x, y = [front.values[number] for number in members], [metric[number] for number in members]
            axes.plot(x, y, MARKERS[state], color=colour, markersize=5, label=STATE_WORDS[state], alpha=0.8)
    line = sorted((front.values[number], metric[number], number) for number in front.members)
    x, y = [x for x, _, _ in line], [y for _, y, _ in line]
    axes.plot(x, y, "o--", color=BEST, mfc="none", markersize=9, label="front")
    for place, value, number in line if len(line) <= NUMBERED else []:
        axes.annotate(f"{number}", (place, value), textcoords="offset points", xytext=(7, 5), fontsize=9)
