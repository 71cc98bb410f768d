"""The pictures of a study. Each is a function of the study and its summary, and returns a matplotlib figure, or None if
there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from raysweep.report.plots.importance_bars import importance
from raysweep.report.plots.parameter_panels import axes, stops
from raysweep.report.plots.pareto_fronts import fronts
from raysweep.report.plots.sample_grids import samples
from raysweep.report.plots.style import save
from raysweep.report.plots.trial_curves import against_reference, curves
from raysweep.study.state import StudyState
from raysweep.study.summary import StudySummary

__all__ = ["against_reference", "axes", "curves", "fronts", "importance", "pictures", "samples", "save", "stops"]

PICTURES: dict[str, Callable[[StudyState, StudySummary], Figure | None]] = {
    "plot": curves,
    "published": against_reference,
    "axes": axes,
    "stops": stops,
    "importance": importance,
    "pareto": fronts,
    "samples": samples,
}


def pictures(study: StudyState, summary: StudySummary) -> dict[str, Figure]:
    """All pictures that have something to show, in reading order, by the names of their files."""
    drawn = {name: draw(study, summary) for name, draw in PICTURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
