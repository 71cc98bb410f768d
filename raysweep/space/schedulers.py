"""Schedulers: which trials continue from a rung, as pure rules over the metrics of the trials there.

The rules know nothing of Ray, training or storage, so a journal can replay them and a simulator can use them. All
schedulers but `promotion` stop trials at a rung. `promotion` lets trials wait there and continues the best of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainables.config import Spec

Eta = Annotated[int, Field(ge=2)]


class _Rule(Spec):
    """The interface of all schedulers."""

    @abstractmethod
    def keep(self, peers: int) -> int:
        """How many of `peers` trials at a rung continue; the trial that has just arrived is one of the peers."""

    def brackets(self, halvings: int) -> list[int]:
        """How many of its first rungs each trial skips, in the order of proposal; repeated for further trials."""
        return [0]


class _Stopping(_Rule):
    """Schedulers that decide as soon as a trial reaches a rung.

    With `noise: paired` a trial is stopped only if its probe shows, with confidence `level`, that it is worse than the
    last trial that continues. The comparison uses the noise of the difference of the two probes, which drew the same
    noise and labels. If it is inconclusive, both are probed again with `larger` times as many samples. A trial that is
    not shown to be worse then continues.
    """

    noise: Literal["ignore", "paired"] = "ignore"
    """With `paired`, a trial is stopped only if a paired comparison of probes shows that it is worse."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the comparison with `noise: paired`."""
    larger: Annotated[int, Field(ge=2)] = 4
    """How many times as many samples are drawn when a comparison is inconclusive."""


class Asha(_Stopping):
    """The best 1/eta of the trials at a rung continue, the others stop (arXiv 1810.05934, as in Ray Tune)."""

    kind: Literal["asha"] = "asha"
    eta: Eta = 2
    """The best 1/eta at a rung continue."""

    def keep(self, peers: int) -> int:
        return max(1, peers // self.eta)


class Hyperband(_Stopping):
    """ASHA in several brackets, for early rungs that mislead: bracket k skips the first k rungs, and all brackets get
    equally many steps (arXiv 1603.06560)."""

    kind: Literal["hyperband"] = "hyperband"
    eta: Eta = 2
    """The best 1/eta at a rung continue."""

    def keep(self, peers: int) -> int:
        return max(1, peers // self.eta)

    def brackets(self, halvings: int) -> list[int]:
        # A bracket has as many trials as its budget pays for; brackets are spread evenly over the order of proposal.
        sizes = [math.ceil((halvings + 1) / (left + 1) * self.eta**left) for left in range(halvings, -1, -1)]
        due, order = [0] * len(sizes), []
        for _ in range(sum(sizes)):
            due = [credit + size for credit, size in zip(due, sizes, strict=True)]
            chosen = due.index(max(due))
            due[chosen] -= sum(sizes)
            order.append(chosen)
        return order


class Median(_Stopping):
    """A trial that is worse than the median of the trials at a rung stops there (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    startup_trials: Annotated[int, Field(ge=1)] = 5
    """Number of trials that a rung has seen before any is stopped there."""

    def keep(self, peers: int) -> int:
        return peers if peers <= self.startup_trials else (peers + 1) // 2


class Never(_Rule):
    """Every trial is trained to its end, as in a grid search."""

    kind: Literal["never"] = "never"

    def keep(self, peers: int) -> int:
        return peers


class Promotion(_Rule):
    """Every trial waits at its rung, and those among the best 1/eta there continue when there is room (ASHA in the form
    of its paper, arXiv 1810.05934). No trial is stopped too early, and none continues only because it came first."""

    kind: Literal["promotion"] = "promotion"
    eta: Eta = 2
    """The best 1/eta at a rung continue."""

    def keep(self, peers: int) -> int:
        return peers // self.eta


STOPPING = (Asha, Hyperband, Median)


def _named(value: Any) -> Any:
    """Read `scheduler: median` as `scheduler: {kind: median}`, and a mapping without a kind as ASHA."""
    return (
        {"kind": value} if isinstance(value, str) else {"kind": "asha", **value} if isinstance(value, dict) else value
    )


_Kind = Literal["asha", "hyperband", "median", "never", "promotion"]
Scheduler = Annotated[
    Asha | Hyperband | Median | Never | Promotion,
    Field(discriminator="kind"),
    BeforeValidator(_named, json_schema_input_type=Asha | Hyperband | Median | Never | Promotion | _Kind),
]
