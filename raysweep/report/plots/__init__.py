"""A study's pictures. Each is a function of the study and its `results.summary`, and returns a matplotlib figure, or
None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from raysweep.report.plots.axes import axes, stops
from raysweep.report.plots.curves import curves, published
from raysweep.report.plots.fronts import fronts
from raysweep.report.plots.importances import importance
from raysweep.report.plots.samples import samples
from raysweep.report.plots.style import save
from raysweep.study.state import StudyState

__all__ = ["axes", "curves", "fronts", "importance", "pictures", "published", "samples", "save", "stops"]

PICTURES: dict[str, Callable[[StudyState, dict[str, Any]], Figure | None]] = {
    "plot": curves,
    "published": published,
    "axes": axes,
    "stops": stops,
    "importance": importance,
    "pareto": fronts,
    "samples": samples,
}


def pictures(study: StudyState, result: dict[str, Any]) -> dict[str, Figure]:
    """All that there is to show, in reading order, by the names of their files."""
    made = {name: picture(study, result) for name, picture in PICTURES.items()}
    return {name: figure for name, figure in made.items() if figure is not None}
