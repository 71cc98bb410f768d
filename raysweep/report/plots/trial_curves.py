"""Every trial's metric against steps and against its cost, and our metrics against the paper's."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from raysweep.formats import short
from raysweep.report.agreement import rank_agreement
from raysweep.report.plots.style import BEST, COLOURS, CONFIDENCE, INK, MARKERS, figure, lower_is_better, tidy
from raysweep.space import runs
from raysweep.study.state import StudyState
from raysweep.study.summary import STATE_WORDS, StudySummary, TrialSummary, short_path, value_text
from trainables.config import error_name

BARS = 60  # up to this many trials, each is drawn with error bars
TICKS = 9  # up to this many steps, each is labelled on the axis

Places = dict[int, list[float]]  # where the probes of a trial lie on the x axis, by the trial's number


def curves(study: StudyState, summary: StudySummary) -> Figure | None:
    """The metric against optimizer steps, with rungs and standard errors; and against device-hours of training."""
    trials = [trial for trial in summary.trials if trial.repeats is None and trial.probes]
    if not trials:
        return None
    best = summary.best.number if summary.best else None
    steps = {trial.number: [float(step) for step in trial.probes] for trial in trials}
    hours = _device_hours(study, trials)
    unit, per_hour = ("minutes", 60.0) if hours and max(map(max, hours.values())) < 1 else ("hours", 1.0)
    picture = figure(4.8, f"{study.space.id}: {_verdict(summary.best)}")
    axes = picture.subplots(1, 2 if hours else 1, sharey=True, squeeze=False)[0]
    _draw(axes[0], study, trials, steps, best, bars=True)
    _rungs(axes[0], trials)
    axes[0].set_ylabel(f"{lower_is_better(study)}; bars: 95% of the probe’s own noise", fontsize=9)
    axes[0].set_xlabel("optimizer steps" + ("; dotted: rungs" if any(trial.decisions for trial in trials) else ""))
    if hours:
        cost = {number: [hour * per_hour for hour in places] for number, places in hours.items()}
        _draw(axes[1], study, [trial for trial in trials if trial.number in cost], cost, best)
        axes[1].set_xlabel(f"device-{unit} of the trial’s training and its teacher’s, without sharing")
        axes[1].set_xlim(left=0)
    _legend(axes[0], trials, best)
    return picture


def against_reference(study: StudyState, summary: StudySummary) -> Figure | None:
    """Our metric against the paper's for the same rows, and how well the two orders agree."""
    agreement = rank_agreement(study, summary.trials)
    if agreement is None:
        return None
    when = "at its end" if agreement.step is None else f"at step {short(agreement.step)}"
    picture = figure(5.2, f"{study.space.id}: do our trials rank as published?\n{agreement}", width=7.5)
    axes = picture.subplots()
    for trial, theirs, ours in agreement.pairs:
        probes = trial.probes.values()
        error = next((probe.get(error_name(study.metric), 0.0) for probe in probes if probe[study.metric] == ours), 0.0)
        colour = BEST if summary.best and trial.number == summary.best.number else COLOURS[trial.state]
        axes.errorbar(theirs, ours, CONFIDENCE * error, fmt=MARKERS[trial.state], color=colour, elinewidth=0.8)
    axes.set_xlabel(f"published {agreement.reference}, on ImageNet")
    axes.set_ylabel(f"ours {when}: {study.metric}, 95%")
    axes.ticklabel_format(useOffset=False)
    tidy(axes)
    _label_points(axes, [(theirs, ours, str(trial.row)) for trial, theirs, ours in agreement.pairs])
    axes.set_title("numbers: rows of the search space", fontsize=9, color="#555555")
    return picture


def _draw(
    axes: Axes, study: StudyState, trials: list[TrialSummary], places: Places, best: int | None, bars: bool = False
) -> None:
    """Draw the curve of each trial with a mark at its end, and the best trial on top of the others."""
    opacity = max(0.06, min(0.75, 12 / len(trials)))
    many = len(trials) > BARS
    for state, colour in COLOURS.items():
        lines = [_points(trial, places, study) for trial in trials if trial.state == state and trial.number != best]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=1.2, alpha=opacity, rasterized=many))
        ends = np.array([line[-1] for line in lines]).reshape(-1, 2)
        size, alpha, marker = 6 if many else 26, min(1, 2 * opacity), MARKERS[state]
        axes.scatter(
            ends[:, 0], ends[:, 1], size, colour, marker=marker, alpha=alpha, linewidths=0, zorder=3, rasterized=many
        )
    for trial in trials:
        if trial.number == best:
            axes.plot(*zip(*_points(trial, places, study), strict=True), "o-", color=BEST, linewidth=2.4, zorder=4)
    if bars:
        _bars(axes, study, [trial for trial in trials if not many or trial.number == best], places, best)
    axes.autoscale()
    tidy(axes)


def _bars(axes: Axes, study: StudyState, trials: list[TrialSummary], places: Places, best: int | None) -> None:
    """Draw error bars, shifted a little so that those of trials at the same step do not overlap."""
    for order, trial in enumerate(trials):
        is_best = trial.number == best
        shift = 1.0 if is_best else 1 + 0.09 * ((order + 0.5) / len(trials) - 0.5)
        x, y = zip(*_points(trial, places, study), strict=True)
        errors = [CONFIDENCE * probe.get(error_name(study.metric), 0.0) for probe in trial.probes.values()]
        colour, thick = (BEST, 1.6) if is_best else (COLOURS[trial.state], 0.7)
        axes.errorbar([place * shift for place in x], y, errors, fmt="none", alpha=0.6, ecolor=colour, elinewidth=thick)


def _points(trial: TrialSummary, places: Places, study: StudyState) -> list[tuple[float, float]]:
    return list(zip(places[trial.number], (probe[study.metric] for probe in trial.probes.values()), strict=True))


def _rungs(axes: Axes, trials: list[TrialSummary]) -> None:
    """A logarithmic axis of steps, with a dotted line at each step where a scheduler decided."""
    steps = sorted({step for trial in trials for step in trial.probes})
    axes.set_xscale("log", base=2)
    shown = steps if len(steps) <= TICKS else steps[:: -(-len(steps) // TICKS)]
    axes.set_xticks(shown, [short(step) for step in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    for step in {decision.step for trial in trials for decision in trial.decisions}:
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":", alpha=0.6, zorder=0)


def _legend(axes: Axes, trials: list[TrialSummary], best: int | None) -> None:
    for state, colour in COLOURS.items():
        word = STATE_WORDS[state] + (": ranked too low at its last rung" if state == "PRUNED" else "")
        if count := sum(trial.state == state for trial in trials):
            axes.plot([], [], MARKERS[state], linestyle="-", color=colour, label=f"{word} ({count})")
    if best is not None:
        axes.plot([], [], "o-", color=BEST, linewidth=2.4, label=f"best (trial {best})")
    axes.legend(fontsize=9, loc="upper right")


def _device_hours(study: StudyState, trials: list[TrialSummary]) -> Places | None:
    """The device-hours up to each probe of each trial, its teachers' included, as if nothing were shared. Trials whose
    manifests are gone are left out; None if all are."""
    teachers: dict[str, float] = {}
    hours = {}
    for trial in trials:
        run = study.run(study.trials[trial.number])
        if not (manifests := study.store.segments(run, trial.step)):
            continue
        before = 0.0
        for teacher in runs.teachers(run):
            key = f"{trial.teacher_key} {teacher.step}"
            if key not in teachers:
                teachers[key] = sum(m.training.device_seconds for m in study.store.segments(teacher.run, teacher.step))
            before += teachers[key]
        segments = [(manifest.step, manifest.training.device_seconds) for manifest in manifests]
        hours[trial.number] = [
            (before + sum(seconds for end, seconds in segments if end <= step)) / 3600 for step in trial.probes
        ]
    return hours or None


def _label_points(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Write a label beside each point, where there is room between the other points and labels."""
    axes.figure.canvas.draw()
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [np.array(place) for place in places]
    for (x, y, label), place in zip(points, places, strict=True):
        offsets = [
            np.array(offset)
            for offset in ((16, 8), (-16, 8), (16, -12), (-16, -12), (0, 20), (0, -24), (28, 0), (-28, 0))
        ]
        room = [min(float(np.linalg.norm(place + offset - other)) for other in taken) for offset in offsets]
        chosen = next((i for i, free in enumerate(room) if free > 13), int(np.argmax(room)))
        taken.append(place + offsets[chosen])
        shift = offsets[chosen] * 72 / axes.figure.dpi
        axes.annotate(
            label, (x, y), xytext=tuple(shift), textcoords="offset points", fontsize=8, ha="center", va="center"
        )


def _verdict(best: TrialSummary | None) -> str:
    if best is None:
        return "no trial has finished"
    params = (f"{short_path(path).rpartition('.')[2]} {value_text(value)}" for path, value in best.params.items())
    return f"best is trial {best.number}\n({', '.join(params)})"
