"""Which of several points no other beats: the front that Pareto's name stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["falls", "rises"]  # what a better number does


def front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """The places, ascending, of the points that none dominates: none is as good in everything and better in something.

    Equal points do not dominate each other. A point with a NaN compares with none and is not in the front.
    """
    signs = [1 if direction == "falls" else -1 for direction in directions]
    costs = [tuple(sign * value for sign, value in zip(signs, point, strict=True)) for point in points]
    known = sorted({cost for cost in costs if not any(map(math.isnan, cost))})  # whoever dominates one stands before it
    members: list[tuple[float, ...]] = []
    for cost in known:
        # Of two numbers, the last member's second is the least so far: it dominates whatever any of them does.
        rivals = members[-1:] if len(signs) == 2 else members
        if not any(dominates(member, cost) for member in rivals):
            members.append(cost)
    kept = set(members)
    return [place for place, cost in enumerate(costs) if cost in kept]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether costs are nowhere above others, and somewhere below."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
