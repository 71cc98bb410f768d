"""Whether ours rank as the published ones do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from raysweep.study import summary
from raysweep.study.state import StudyState
from raysweep.study.summary import Row

FEWEST = 3  # rows; of two there is always an order


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of a study's metric with a published one, over the rows that have both.

    Attributes:
        step: at which ours were measured; None: each at its end.
        pairs: (trial's row, published, ours).
        rho: Spearman's, 1 where both have the same order; `tau` Kendall's tau-b. NaN where one side is all the same.
        rho_p: how often chance alone would be as far from 0; `tau_p` likewise.
    """

    published: str
    step: int | None
    pairs: list[tuple[Row, float, float]]
    rho: float = math.nan
    rho_p: float = math.nan
    tau: float = math.nan
    tau_p: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.rho):
            return f"n = {len(self.pairs)}: too few to rank"
        told = (
            f"Spearman's ρ = {self.rho:.2f} (p = {self.rho_p:.2g}), Kendall's τ = {self.tau:.2f} (p = {self.tau_p:.2g})"
        )
        return f"{told}, n = {len(self.pairs)}"


def agreement(study: StudyState, rows: Sequence[Row]) -> Agreement | None:
    """How ours rank against the first metric that was published (FID where there is one): at the rows' ends, or at the
    last step that all of them have come to. None where nothing was published or nothing is measured."""
    published = summary.published(study)[:1]
    known = [row for row in rows if row["repeats"] is None and published and published[0] in row["published"]]
    step, measured = summary.comparable(known)
    if not measured:
        return None
    pairs = [(row, row["published"][published[0]], metrics[study.metric]) for row, metrics in measured]
    theirs, ours = [one for _, one, _ in pairs], [other for _, _, other in pairs]
    if len(pairs) < FEWEST or len(set(theirs)) == 1 or len(set(ours)) == 1:
        return Agreement(published[0], step, pairs)
    spearman, kendall = stats.spearmanr(theirs, ours), stats.kendalltau(theirs, ours)
    values = (spearman.statistic, spearman.pvalue, kendall.statistic, kendall.pvalue)
    return Agreement(published[0], step, pairs, *map(float, values))
