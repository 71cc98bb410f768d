"""Colours, sizes and helpers that all pictures share."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raysweep.study.state import StudyState
from raysweep.study.trial import State

# Okabe and Ito's colours, safe for colour-blind readers.
COLOURS: dict[State, str] = {"COMPLETE": "#0072B2", "PRUNED": "#999999", "FAILED": "#D55E00", "RUNNING": "#E69F00"}
MARKERS: dict[State, str] = {"COMPLETE": "o", "PRUNED": "v", "FAILED": "X", "RUNNING": "s"}
BEST, REFERENCE, INK = "#009E73", "#D55E00", "#1c2733"
WIDTH = 11.0  # inches
CONFIDENCE = 1.96  # standard errors to 95%
DPI = 150


def figure(height: float, title: str, width: float = WIDTH) -> Figure:
    """A figure of so many inches, outside pyplot's global state."""
    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title, fontsize=12)
    return picture


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no frame above and to the right."""
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def lower_is_better(study: StudyState) -> str:
    """The label of an axis with the deciding metric."""
    return f"{study.metric} (lower is better)"


def save(picture: Figure, to: Path, kind: str) -> None:
    """Write a picture as `png` or `svg`. The same picture gives the same bytes."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "raysweep"}
    with matplotlib.rc_context(settings):
        picture.savefig(to, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
