"""A study as users open it: trials, the best one, data frames, pictures, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from raysweep.errors import UserError
from raysweep.report import lineage, lineage_svg, plots, tables
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import StudySummary, TrialSummary, summarize

if TYPE_CHECKING:
    import pandas as pd


class Study:
    """A study as it was when it was opened: `raysweep.open_study` reads it anew.

    In a notebook it is displayed as its table.

    Attributes:
        name: what the study is called in its storage: the search space's name, its profile, and a digest of it.
        metric: the name of the metric that decides, e.g. `fid_10k`; lower is better.
        space: the search space.
        trials: all trials, in the order in which they were proposed.
        best: the complete trial with the lowest metric; None while none is complete.
        plots: its pictures.
    """

    def __init__(self, state: StudyState, summary: StudySummary):
        self._state, self._summary = state, summary
        self.name, self.metric, self.space = summary.study, summary.metric, state.space
        self.trials: list[TrialSummary] = summary.trials
        self.best: TrialSummary | None = summary.best
        self.plots = Plots(state, summary)

    @classmethod
    def open(cls, storage: str, name: str) -> Study:
        """The study of that name in a storage: see `raysweep.open_study`."""
        state = StudyState.reopen(Store(storage), name)
        return cls(state, summarize(state))

    def frame(self) -> pd.DataFrame:
        """A row for each trial: parameters, step, device hours, metrics with their standard errors, state, reason."""
        return tables.trials_frame(self.trials)

    def probes(self) -> pd.DataFrame:
        """A row for each probe of each trial: its parameters, the step, the metrics with their standard errors."""
        return tables.probes_frame(self.trials)

    def markdown(self) -> str:
        """The table of all trials as Markdown, the best first."""
        return tables.markdown(self._state, tables.ordered(self.trials))

    def latex(self) -> str:
        """The table of all trials as LaTeX, for `\\usepackage{booktabs}`."""
        return tables.latex(self._state, tables.ordered(self.trials), self.best)

    def checkpoint(self, trial: int | TrialSummary, step: int | None = None) -> Path:
        """A folder of this machine with the files of a trial's checkpoint, each checked against its SHA-256.

        Args:
            trial: the trial, or its number.
            step: the optimizer step; None: the last one that the trial has reached.

        Raises:
            UserError: there is no such trial, or the storage has no checkpoint of it at that step.
            CheckpointDamaged: a file is missing or altered.
        """
        number = trial if isinstance(trial, int) else trial.number
        if not 0 <= number < len(self.trials):
            raise UserError(f"{self.name} has no trial {number}: it has {len(self.trials)}, counted from 0")
        step = self.trials[number].step if step is None else step
        run = self._state.run(self._state.trials[number])
        stored = self._state.store.find(run, step) if 0 < step <= run.steps else None
        if stored is None:
            raise UserError(f"the storage has no checkpoint of trial {number} of {self.name} at step {step}")
        return self._state.store.open(stored)

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def __repr__(self) -> str:
        best = f", best {self.best.value:.4g} (trial {self.best.number})" if self.best else ""
        return f"<Study {self.name}: {len(self.trials)} trials{best}>"


class Plots:
    """A study's pictures. Each is a matplotlib figure, or None where there is nothing to show yet."""

    def __init__(self, state: StudyState, summary: StudySummary):
        self._state, self._summary = state, summary

    def curves(self) -> Figure | None:
        """The metric of each trial against optimizer steps, and against device hours."""
        return plots.curves(self._state, self._summary)

    def against_reference(self) -> Figure | None:
        """Our metrics against the paper's for the same rows."""
        return plots.against_reference(self._state, self._summary)

    def axes(self) -> Figure | None:
        """One parameter at a time, as in the paper's Table 5."""
        return plots.axes(self._state, self._summary)

    def stops(self) -> Figure | None:
        """The metric against the step at which the extra loss ends, as in the paper's Figure 8."""
        return plots.stops(self._state, self._summary)

    def importance(self) -> Figure | None:
        """How much each parameter matters, by fANOVA."""
        return plots.importance(self._state, self._summary)

    def pareto(self) -> Figure | None:
        """The metric against a second quantity, with the Pareto front: the trials that no other trial dominates."""
        return plots.fronts(self._state, self._summary)

    def samples(self) -> Figure | None:
        """Samples of the best trials from the same noise, rung by rung."""
        return plots.samples(self._state, self._summary)

    def lineage(self) -> str:
        """Which teacher taught which student, as SVG."""
        return lineage_svg.drawing(lineage.trace(self._state, self._summary))
