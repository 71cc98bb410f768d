"""How much each parameter matters."""

from __future__ import annotations

from matplotlib.figure import Figure

from raysweep.report.importance import importances
from raysweep.report.plots.style import BEST, COLOURS, figure, tidy
from raysweep.study.state import StudyState
from raysweep.study.summary import StudySummary


def importance(study: StudyState, summary: StudySummary) -> Figure | None:
    """A bar for each parameter: its share of the metric's variance, at the first rung and at the end."""
    series = importances(study, summary.trials)
    if not series:
        return None
    names = sorted({name for bars in series for name in bars.shares}, key=lambda name: series[0].shares.get(name, 0.0))
    picture = figure(1.3 + 0.42 * len(names), f"{study.space.id}: what {study.metric} depends on (fANOVA)", 8.0)
    axes, thick = picture.subplots(), 0.8 / len(series)
    for number, (bars, colour) in enumerate(zip(series, (COLOURS["COMPLETE"], BEST), strict=False)):
        places = [place - thick * (number - (len(series) - 1) / 2) for place in range(len(names))]
        shares = [bars.shares.get(name, 0.0) for name in names]
        axes.barh(places, shares, height=thick * 0.9, color=colour, label=f"{bars.when}, {bars.trials} trials")
        for place, share in zip(places, shares, strict=True):
            axes.annotate(
                f"{share:.2f}", (share, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.05)
    left_out = sorted({name for bars in series for name in bars.left_out})
    remark = f"; left out because only some trials have them: {', '.join(left_out)}" if left_out else ""
    axes.set_xlabel(f"share of the variance over the trials{remark}", fontsize=9)
    tidy(axes)
    axes.legend(fontsize=9, loc="lower right")
    return picture
