"""What the best trials draw from the same noise, rung by rung."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from raysweep.formats import short
from raysweep.report.plots.style import figure
from raysweep.store.history import probe_key
from raysweep.study.state import StudyState
from raysweep.study.summary import Row, changed
from trainables.config import GRID_COLUMNS
from trainables.datasets import catalog

TRIALS, STEPS = 5, 4
SAMPLES = (6, 2)  # columns (classes) and rows of a probe's grid that are shown


def samples(study: StudyState, result: dict[str, Any]) -> Figure | None:
    """The same few samples of each trial (below each other, the best first) at its last rungs (from left to right)."""
    rows = _chosen(study, result)
    shown = {row["trial"]: row["probes"][-STEPS:] for row in rows}
    cells = {(trial, probe["step"]): _cell(study, trial, probe["step"]) for trial in shown for probe in shown[trial]}
    first = next((cell for cell in cells.values() if cell is not None), None)
    if first is None:
        return None
    columns = max(map(len, shown.values()))
    wide = 10.6 / max(2, columns)
    tall = wide * first.shape[0] / first.shape[1] + 0.42
    title = f"{study.space.id}\nsamples from the same noise, EMA weights"
    picture = figure(1.0 + len(rows) * tall, title, 0.4 + wide * columns)
    for line, row in zip(picture.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, probe in zip(line, shown[row["trial"]], strict=False):
            if (cell := cells[row["trial"], probe["step"]]) is not None:
                axes.imshow(cell, interpolation="lanczos")
            told = f"step {short(probe['step'])}: {study.metric} {probe[study.metric]:.4g}"
            axes.set_title(told, fontsize=8, loc="left", pad=3)
        line[0].annotate(
            f"trial {row['trial']}: {changed(study, row['params'])}",
            (0, 1.0),
            xytext=(0, 17),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            weight="bold",
        )
    return picture


def _chosen(study: StudyState, result: dict[str, Any]) -> list[Row]:
    """The best trials of those that came furthest, and the defaults."""
    known = [row for row in result["trials"] if row["repeats"] is None and row["probes"]]
    known.sort(key=lambda row: (-row["steps"], row["metrics"][study.metric]))
    base = study.space.defaults
    default = [row for row in known[TRIALS:] if row["params"] == base]
    return [*known[: TRIALS - len(default)], *default]


def _cell(study: StudyState, number: int, step: int) -> np.ndarray[Any, Any] | None:
    trial = study.trials[number]
    with study.store.open_picture("probes", probe_key(study.run(trial), step, study.probe(trial))) as stream:
        if not stream:
            return None
        sheet = np.asarray(Image.open(stream).convert("RGB"))
    tile = sheet.shape[1] // min(catalog.find(study.run(trial).data).num_classes, GRID_COLUMNS)
    return sheet[: SAMPLES[1] * tile, : SAMPLES[0] * tile]
