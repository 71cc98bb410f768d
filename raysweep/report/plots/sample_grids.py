"""The samples that the best trials draw from the same noise, rung by rung."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from raysweep.formats import short
from raysweep.report.plots.style import figure
from raysweep.store.history import probe_key
from raysweep.study.state import StudyState
from raysweep.study.summary import StudySummary, TrialSummary, difference_from_defaults
from trainables.config import GRID_COLUMNS
from trainables.datasets import catalog

TRIALS, STEPS = 5, 4
SAMPLES = (6, 2)  # how many columns (classes) and rows of a probe's grid are shown


def samples(study: StudyState, summary: StudySummary) -> Figure | None:
    """The same few samples of each trial at its last rungs: one trial per row, the best first; rungs from left to
    right."""
    trials = _chosen(study, summary)
    steps = {trial.number: list(trial.probes)[-STEPS:] for trial in trials}
    cells = {(number, step): _cell(study, number, step) for number in steps for step in steps[number]}
    first = next((cell for cell in cells.values() if cell is not None), None)
    if first is None:
        return None
    columns = max(map(len, steps.values()))
    wide = 10.6 / max(2, columns)
    tall = wide * first.shape[0] / first.shape[1] + 0.42
    title = f"{study.space.id}\nsamples from the same noise, EMA weights"
    picture = figure(1.0 + len(trials) * tall, title, 0.4 + wide * columns)
    for line, trial in zip(picture.subplots(len(trials), columns, squeeze=False), trials, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, step in zip(line, steps[trial.number], strict=False):
            if (cell := cells[trial.number, step]) is not None:
                axes.imshow(cell, interpolation="lanczos")
            title = f"step {short(step)}: {study.metric} {trial.probes[step][study.metric]:.4g}"
            axes.set_title(title, fontsize=8, loc="left", pad=3)
        line[0].annotate(
            f"trial {trial.number}: {difference_from_defaults(study, trial.params)}",
            (0, 1.0),
            xytext=(0, 17),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            weight="bold",
        )
    return picture


def _chosen(study: StudyState, summary: StudySummary) -> list[TrialSummary]:
    """The trials with the lowest metric among those with the most steps, and the one with the defaults."""
    known = [trial for trial in summary.trials if trial.repeats is None and trial.probes]
    known.sort(key=lambda trial: (-trial.step, trial.metrics[study.metric]))
    default = [trial for trial in known[TRIALS:] if trial.params == study.space.defaults]
    return [*known[: TRIALS - len(default)], *default]


def _cell(study: StudyState, number: int, step: int) -> np.ndarray[Any, Any] | None:
    """The upper left part of a probe's grid of samples, (H, W, 3) uint8; None if it is not in the store."""
    trial = study.trials[number]
    picture = study.store.picture(probe_key(study.run(trial), step, study.probe(trial)))
    if picture is None:
        return None
    sheet = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    tile = sheet.shape[1] // min(catalog.find(study.run(trial).data).num_classes, GRID_COLUMNS)
    return sheet[: SAMPLES[1] * tile, : SAMPLES[0] * tile]
