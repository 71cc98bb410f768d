"""Whether our trials have the same order as the paper's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from raysweep.study.state import StudyState
from raysweep.study.summary import TrialSummary, comparable_probes, reference_metrics

FEWEST = 3  # pairs: with two, the correlation is always 1 or -1


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between our metric and the paper's, over the rows that have both.

    Attributes:
        reference: the name of the paper's metric.
        step: the step at which our trials were measured; None if each was measured at its end.
        pairs: (trial, the paper's value, ours).
        rho: Spearman's, 1 if both have the same order; NaN with fewer than three pairs, or if one side is constant.
        rho_p: the probability that chance alone gives a `rho` this far from 0.
        tau: Kendall's tau-b, with `tau_p` likewise.
    """

    reference: str
    step: int | None
    pairs: list[tuple[TrialSummary, float, float]]
    rho: float = math.nan
    rho_p: float = math.nan
    tau: float = math.nan
    tau_p: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.rho):
            return f"n = {len(self.pairs)}: too few to rank"
        spearman = f"Spearman's ρ = {self.rho:.2f} (p = {self.rho_p:.2g})"
        kendall = f"Kendall's τ = {self.tau:.2f} (p = {self.tau_p:.2g})"
        return f"{spearman}, {kendall}, n = {len(self.pairs)}"


def rank_agreement(study: StudyState, trials: Sequence[TrialSummary]) -> Agreement | None:
    """The agreement with the first metric that the paper reports, which is FID if it reports FID. Trials are compared
    at their ends, or at the last step at which all of them were probed. None if the paper reports no metric, or no
    trial was probed."""
    reference = next(iter(reference_metrics(study)), None)
    known = [trial for trial in trials if trial.repeats is None and reference in trial.reference]
    step, measured = comparable_probes(known)
    if not measured or reference is None:
        return None
    pairs = [(trial, trial.reference[reference], metrics[study.metric]) for trial, metrics in measured]
    theirs, ours = [value for _, value, _ in pairs], [value for _, _, value in pairs]
    if len(pairs) < FEWEST or len(set(theirs)) == 1 or len(set(ours)) == 1:
        return Agreement(reference, step, pairs)
    spearman, kendall = stats.spearmanr(theirs, ours), stats.kendalltau(theirs, ours)
    values = (spearman.statistic, spearman.pvalue, kendall.statistic, kendall.pvalue)
    return Agreement(reference, step, pairs, *map(float, values))
