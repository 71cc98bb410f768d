"""What two stored probes say about the difference of two trials.

Probes of a study draw the same noise and labels, so sample i of one and sample i of the other are a pair: the noise
that they share cancels. The error of the difference is that of the mean of the influences' differences, which is what a
paired bootstrap of the two metrics converges to (`trainables.evaluation.estimate`).
"""

from __future__ import annotations

import math

from raysweep.store.store import Store
from raysweep.study.rungs import Difference
from trainables.config import ProbeSpec, error_name


def difference(store: Store, mine: str, theirs: str, spec: ProbeSpec) -> Difference:
    """By how much the first of two probes, named by their keys, is worse. Where a store does not have the influences of
    both, their errors count as independent; where it does not have those or the probes, nothing is known."""
    records = [store.record("probes", key) for key in (mine, theirs)]
    if None in records:
        return Difference(math.nan, math.nan)
    one, other = (record["metrics"] for record in records if record)
    value, error = one[spec.metric] - other[spec.metric], error_name(spec.metric)
    influences = [store.influence(key) for key in (mine, theirs)]
    if influences[0] is None or influences[1] is None:
        return Difference(value, math.hypot(one.get(error, math.nan), other.get(error, math.nan)))
    influence = influences[0] - influences[1]
    return Difference(value, float(influence.std(ddof=1) / len(influence) ** 0.5))
