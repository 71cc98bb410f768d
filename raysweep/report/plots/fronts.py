"""What the deciding metric is traded for."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from raysweep.report.plots.style import BEST, COLOURS, MARKERS, figure, lower_is_better, tidy
from raysweep.study import summary
from raysweep.study.state import StudyState

WRITTEN = 12  # members of a front up to which their numbers are written


def fronts(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """The metric against what it is traded for, with the trials that none beats in both."""
    rows = result["trials"]
    tradeoffs = summary.tradeoffs(study, rows)
    if not any(places for _, places in tradeoffs.values()):
        return None
    picture = figure(4.8, f"{study.space.id}: trials that no other beats in both, by number", 5.5 * len(tradeoffs))
    for axes, (name, (members, places)) in zip(
        picture.subplots(1, len(tradeoffs), squeeze=False)[0], tradeoffs.items(), strict=True
    ):
        for state, colour in COLOURS.items():
            points = [(x, rows[t]["metrics"][study.metric]) for t, x in places.items() if rows[t]["state"] == state]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    MARKERS[state],
                    color=colour,
                    markersize=5,
                    label=state.lower(),
                    alpha=0.8,
                )
        front = sorted((places[trial], rows[trial]["metrics"][study.metric], trial) for trial in members)
        axes.plot(
            [x for x, _, _ in front],
            [y for _, y, _ in front],
            "o--",
            color=BEST,
            mfc="none",
            markersize=9,
            label="front",
        )
        for x, y, trial in front if len(front) <= WRITTEN else []:
            axes.annotate(f"{trial}", (x, y), textcoords="offset points", xytext=(7, 5), fontsize=9)
        better = "fewer" if name == "steps" else "higher"
        axes.set_xlabel(f"{'steps, with the teachers’' if name == 'steps' else name} ({better} is better)")
        axes.set_ylabel(lower_is_better(study))
        tidy(axes)
        axes.legend(fontsize=9)
    return picture
