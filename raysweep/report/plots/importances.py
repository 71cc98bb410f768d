"""How much each parameter matters."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from raysweep.report.importance import importances
from raysweep.report.plots.style import BEST, COLOURS, figure, tidy
from raysweep.study.state import StudyState


def importance(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """A bar for each parameter: its share of the metric's variance, early and at the end."""
    found = importances(study, result["trials"])
    if not found:
        return None
    names = sorted({name for each in found for name in each.shares}, key=lambda name: found[0].shares.get(name, 0.0))
    picture = figure(1.3 + 0.42 * len(names), f"{study.space.id}: what {study.metric} depends on (fANOVA)", 8.0)
    axes, thick = picture.subplots(), 0.8 / len(found)
    for number, (each, colour) in enumerate(zip(found, (COLOURS["COMPLETE"], BEST), strict=False)):
        places = [place - thick * (number - (len(found) - 1) / 2) for place in range(len(names))]
        shares = [each.shares.get(name, 0.0) for name in names]
        axes.barh(places, shares, height=thick * 0.9, color=colour, label=f"{each.when}, {each.trials} trials")
        for place, share in zip(places, shares, strict=True):
            axes.annotate(
                f"{share:.2f}", (share, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.05)
    left_out = sorted({name for each in found for name in each.left_out})
    told = f"; not open in all trials, so left out: {', '.join(left_out)}" if left_out else ""
    axes.set_xlabel(f"share of the variance over the trials{told}", fontsize=9)
    tidy(axes)
    axes.legend(fontsize=9, loc="lower right")
    return picture
