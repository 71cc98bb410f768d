"""The Pareto front of several points: those that no other point dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["falls", "rises"]  # how a number changes when it gets better


def front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """The indices, ascending, of the points that no other dominates. A point dominates another if it is as good in
    every number and better in one.

    Equal points do not dominate each other. A point with a NaN is not in the front.
    """
    signs = [1 if direction == "falls" else -1 for direction in directions]
    costs = [tuple(sign * value for sign, value in zip(signs, point, strict=True)) for point in points]
    # Sorted, so that a point comes after all points that dominate it.
    known = sorted({cost for cost in costs if not any(map(math.isnan, cost))})
    members: list[tuple[float, ...]] = []
    for cost in known:
        # With two numbers, the last member has the smallest second number so far: if any member dominates, it does.
        rivals = members[-1:] if len(signs) == 2 else members
        if not any(dominates(member, cost) for member in rivals):
            members.append(cost)
    kept = set(members)
    return [index for index, cost in enumerate(costs) if cost in kept]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether no cost of the first is above that of the second, and at least one is below."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
