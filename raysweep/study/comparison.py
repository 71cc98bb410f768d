"""The difference of two trials, from two stored probes.

The probes of a study draw the same noise and labels, so sample i of one and sample i of the other form a pair, and the
noise that they share cancels. The error of the difference is the error of the mean of the influences' differences,
which a paired bootstrap of the two metrics converges to (`trainables.evaluation.estimate`).
"""

from __future__ import annotations

import math

from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from raysweep.study.rungs import Difference
from trainables.config import ProbeSpec, error_name


def difference(store: Store, mine: str, theirs: str, spec: ProbeSpec) -> Difference:
    """By how much the first of two probes, given by their keys, is worse than the second.

    If the influences of either probe are missing, the errors count as independent. If a probe or its error is missing,
    the difference or its error is NaN.
    """
    one, other = store.record(ProbeRecord, mine), store.record(ProbeRecord, theirs)
    if one is None or other is None:
        return Difference(math.nan, math.nan)
    value, error = one.metrics[spec.metric] - other.metrics[spec.metric], error_name(spec.metric)
    my_influence, their_influence = store.influence(mine), store.influence(theirs)
    if my_influence is None or their_influence is None:
        return Difference(value, math.hypot(one.metrics.get(error, math.nan), other.metrics.get(error, math.nan)))
    influence = my_influence - their_influence
    return Difference(value, float(influence.std(ddof=1) / len(influence) ** 0.5))
