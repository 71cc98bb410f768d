"""Who goes on from a rung, as pure rules over what trials had there.

Nothing here knows of Ray, of training or of a store, so that a journal can replay it and a simulator can drive it. All
but `promotion` stop a trial at a rung; that one lets it wait there, and goes on with the most promising of those who
wait.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainables.config import Spec

Eta = Annotated[int, Field(ge=2)]


class _Rule(Spec):
    """What all schedulers have."""

    @abstractmethod
    def keep(self, peers: int) -> int:
        """How many of those at a rung go on, itself included who has just come."""

    def brackets(self, halvings: int) -> list[int]:
        """How many rungs a trial passes without being judged, in the order of proposal, again and again."""
        return [0]


class _Stopping(_Rule):
    """Schedulers that stop a trial as soon as it has come to a rung.

    With `noise: paired` only where its probe says with confidence `level` that it is worse than the last who goes on:
    by the noise of the two probes' difference, as both drew the same noise and labels. Where that cannot be said, both
    are probed with `larger` times as many samples; what is not worse then either goes on.
    """

    noise: Literal["ignore", "paired"] = "ignore"
    """With `paired`, a trial is stopped only if a paired comparison of probes shows that it is worse."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the comparison with `noise: paired`."""
    larger: Annotated[int, Field(ge=2)] = 4
    """How many times as many samples are drawn when a comparison is inconclusive."""


class Asha(_Stopping):
    """The best 1/eta of those who have come to a rung go on (arXiv 1810.05934, as Ray Tune has it: by stopping)."""

    kind: Literal["asha"] = "asha"
    eta: Eta = 2
    """The best 1/eta at a rung continue."""

    def keep(self, peers: int) -> int:
        return max(1, peers // self.eta)


class Hyperband(_Stopping):
    """ASHA in several brackets, that pass none, one, two, ... of the first rungs unjudged and get as many steps each
    (arXiv 1603.06560): for the case that early rungs mislead."""

    kind: Literal["hyperband"] = "hyperband"
    eta: Eta = 2
    """The best 1/eta at a rung continue."""

    def keep(self, peers: int) -> int:
        return max(1, peers // self.eta)

    def brackets(self, halvings: int) -> list[int]:
        # As many trials in a bracket as its budget pays for; spread evenly over the order of proposal.
        sizes = [math.ceil((halvings + 1) / (left + 1) * self.eta**left) for left in range(halvings, -1, -1)]
        due, order = [0] * len(sizes), []
        for _ in range(sum(sizes)):
            due = [credit + size for credit, size in zip(due, sizes, strict=True)]
            chosen = due.index(max(due))
            due[chosen] -= sum(sizes)
            order.append(chosen)
        return order


class Median(_Stopping):
    """Whoever is worse than the median of those who have come to a rung is stopped there (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    startup_trials: Annotated[int, Field(ge=1)] = 5
    """Number of trials that a rung has seen before any is stopped there."""

    def keep(self, peers: int) -> int:
        return peers if peers <= self.startup_trials else (peers + 1) // 2


class Never(_Rule):
    """Every trial goes to its end: a grid's own way."""

    kind: Literal["never"] = "never"

    def keep(self, peers: int) -> int:
        return peers


class Promotion(_Rule):
    """Every trial waits at its rung; whoever is among the best 1/eta there goes on when there is room (ASHA as it was
    published). Nobody is stopped too early, and nothing goes on only because it came first."""

    kind: Literal["promotion"] = "promotion"
    eta: Eta = 2
    """The best 1/eta at a rung continue."""

    def keep(self, peers: int) -> int:
        return peers // self.eta


STOPPING = (Asha, Hyperband, Median)


def _named(value: Any) -> Any:
    """`scheduler: median` is short for `scheduler: {kind: median}`, and what names no kind is of ASHA."""
    return (
        {"kind": value} if isinstance(value, str) else {"kind": "asha", **value} if isinstance(value, dict) else value
    )


_Kind = Literal["asha", "hyperband", "median", "never", "promotion"]
Scheduler = Annotated[
    Asha | Hyperband | Median | Never | Promotion,
    Field(discriminator="kind"),
    BeforeValidator(_named, json_schema_input_type=Asha | Hyperband | Median | Never | Promotion | _Kind),
]
