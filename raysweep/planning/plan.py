"""What search spaces will cost, before anything is trained. Needs only the spaces: no data, no Ray, no torch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raysweep.planning import price
from raysweep.planning.segments import Segment, Tree
from raysweep.space import runs
from raysweep.space.configurations import Configuration, configurations
from raysweep.space.space import Space
from raysweep.study.rungs import Rungs
from trainables.config import ProbeSpec
from trainables.datasets import catalog

DRAWS = 8  # random outcomes to average over, where some configurations have no reference value
MANY = 500  # from this many configurations on, one outcome is precise enough

LastSteps = list[tuple[Configuration, int]]  # each configuration with the step at which it stops


@dataclass
class Cost:
    """The cost of some trials, trained in one way. Counts are floats, because they may be means over several
    outcomes."""

    steps: float = 0
    """Optimizer steps."""
    training_gpu_s: float = 0
    """GPU-seconds of training."""
    probes: float = 0
    """Number of probes."""
    probes_gpu_s: float = 0
    """GPU-seconds of probes."""
    checkpoints: float = 0
    """Number of checkpoints that are committed."""
    checkpoints_gib: float = 0
    """Their size in GiB."""

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of training and probes."""
        return (self.training_gpu_s + self.probes_gpu_s) / 3600

    def as_dict(self, price_per_gpu_hour: float | None = None) -> dict[str, float]:
        """The cost as plain data, with GPU time in hours; `money` only where a price is given."""
        facts = {"steps": self.steps, "gpu_hours": self.gpu_hours, "probe_gpu_hours": self.probes_gpu_s / 3600}
        facts |= {"probes": self.probes, "checkpoints": self.checkpoints, "checkpoints_gib": self.checkpoints_gib}
        return facts | ({"money": self.gpu_hours * price_per_gpu_hour} if price_per_gpu_hour is not None else {})


@dataclass
class Costs:
    """The cost of the same trials, trained in three ways."""

    together: Cost
    """Each segment is trained once and shared, as raysweep does."""
    teachers_by_hand: Cost
    """Each trial is trained separately; each distinct teacher is trained once, by hand, beforehand."""
    apart: Cost
    """Each trial is trained separately, with a teacher of its own."""
    assumed: str
    """The assumption about the results that decide which trials are pruned; empty where none is pruned."""

    def as_dict(self, price_per_gpu_hour: float | None = None) -> dict[str, Any]:
        """The costs as plain data."""
        return {
            "together": self.together.as_dict(price_per_gpu_hour),
            "teachers_by_hand": self.teachers_by_hand.as_dict(price_per_gpu_hour),
            "apart": self.apart.as_dict(price_per_gpu_hour),
            "assumed": self.assumed,
        }


class Plan:
    """What search spaces would train if they ran as one sweep, and what that costs.

    Attributes:
        spaces: the search spaces.
        configurations: every configuration that would be proposed. Random configurations stand for those that a sampler
            would propose.
        notes: sentences about what the plan leaves out of these spaces or assumes about them.

    Raises:
        UserError: nothing is known of a data set, so that the size of its latents is unknown.
    """

    def __init__(self, spaces: Sequence[Space]):
        self.notes: list[str] = []
        self.configurations = [chosen for space in spaces for chosen in configurations(space, self.notes)]
        self.spaces = list(spaces)
        for chosen in {chosen.run.data: chosen for chosen in self.configurations}.values():
            try:
                catalog.find(chosen.run.data)
            except LookupError as error:
                raise chosen.space.error(("trial", "data"), str(error.args[0])) from None
        steps = {step for space in spaces for step in runs.milestones(space)}
        self._tree = Tree(steps, [(chosen.run, chosen.rungs) for chosen in self.configurations])
        for chosen in self.configurations:
            self._tree.add(chosen.run, chosen.run.steps)

    @property
    def segments(self) -> list[Segment]:
        """All segments. Parents and teachers come before the segments that need them."""
        return self._tree.segments

    @property
    def schedulers(self) -> str:
        """The names of the schedulers that prune trials, separated by commas."""
        exploring = [space for space in self.spaces if space.search.mode == "explore"]
        return ", ".join(sorted({space.search.scheduler.kind for space in exploring}))

    @property
    def critical_path(self) -> int:
        """The longest chain of optimizer steps that no number of machines can shorten: a teacher's, then its
        student's."""
        done: dict[int, int] = {}
        for segment in self.segments:
            before = [done[other] for other in (segment.parent, segment.teacher) if other is not None]
            done[segment.number] = segment.steps + max(before, default=0)
        return max(done.values(), default=0)

    @cached_property
    def grid(self) -> Costs:
        """The costs of training every configuration to its end."""
        return self._costs([[(chosen, chosen.run.steps) for chosen in self.configurations]], "")

    @cached_property
    def expected(self) -> Costs | None:
        """The expected costs with pruning; None where no space prunes."""
        if all(space.search.mode != "explore" for space in self.spaces):
            return None
        known = [chosen.reference for chosen in self.configurations if chosen.reference is not None]
        if len(known) == len(self.configurations):
            draws, how = 1, "the reference FID at every rung"
        else:
            draws = 1 if len(self.configurations) > MANY else DRAWS
            how = "reference FIDs, and values drawn from them where there are none" if known else "random results"
            how += f"; mean of {draws} draws" if draws > 1 else "; one draw"
        outcomes = [self._prune(random.Random(draw), known) for draw in range(draws)]
        return self._costs(outcomes, f"all trials reach a rung before any goes on, in the order of proposal; {how}")

    def as_dict(self, price_per_gpu_hour: float | None = None) -> dict[str, Any]:
        """The plan as plain data, as `raysweep plan --json` prints it."""
        facts: dict[str, Any] = {"configurations": len(self.configurations), "stages": len(self.segments)}
        facts |= {"critical_path_steps": self.critical_path, "notes": self.notes, "assumed": price.ASSUMED}
        for name, costs in (("grid", self.grid), ("expected", self.expected)):
            if costs:
                facts[name] = costs.as_dict(price_per_gpu_hour)
        return facts

    def _costs(self, outcomes: Sequence[LastSteps], assumed: str) -> Costs:
        """The mean costs over several outcomes."""
        costs = Costs(Cost(), Cost(), Cost(), assumed)
        for outcome in outcomes:
            share = 1 / len(outcomes)
            chains = [(chosen, self._chain(chosen, step)) for chosen, step in outcome]
            own = Counter(number for _, chain in chains for number in chain)
            teachers = [teacher for chosen, step in outcome if step for teacher in runs.teachers(chosen.run)]
            taught_by = [tuple(self._tree.chain(teacher.run, teacher.step)) for teacher in teachers]
            apart = own + Counter(number for chain in taught_by for number in chain)
            by_hand = own + Counter(number for chain in set(taught_by) for number in chain)
            # Trials whose histories are still equal at a rung share its probe.
            probed = Counter((n, c.probe) for c, chain in chains for n in chain if self.segments[n].end in c.rungs)
            self._add(costs.together, Counter(set(apart)), Counter(set(probed)), share)
            self._add(costs.teachers_by_hand, by_hand, probed, share)
            self._add(costs.apart, apart, probed, share)
        return costs

    def _chain(self, chosen: Configuration, step: int) -> list[int]:
        """The segments of a configuration's own run up to `step`, which is a milestone."""
        return [n for n in self._tree.chain(chosen.run, chosen.run.steps) if self.segments[n].end <= step]

    def _add(self, cost: Cost, trained: Counter[int], probed: Counter[tuple[int, ProbeSpec]], share: float) -> None:
        for number, times in trained.items():
            segment = self.segments[number]
            cost.steps += segment.steps * times * share
            cost.training_gpu_s += segment.gpu_s * times * share
            cost.checkpoints += times * share
            cost.checkpoints_gib += price.checkpoint_gib(segment.run) * times * share
        for (number, spec), times in probed.items():
            cost.probes += times * share
            cost.probes_gpu_s += price.probe_gpu_s(self.segments[number].run, spec) * times * share

    def _prune(self, chance: random.Random, known: Sequence[float]) -> LastSteps:
        """The step at which each trial stops: all trials reach a rung in the order of proposal, then the survivors
        continue to the next rung."""
        stopped: LastSteps = []
        for space in self.spaces:
            own = [chosen for chosen in self.configurations if chosen.space is space]
            rungs = Rungs(space.search.scheduler, len(space.rungs(space.trial({})[0])) - 1)
            drawn = [chance.choice(known) if known else chance.random() for _ in own]
            values = [value if c.reference is None else c.reference for c, value in zip(own, drawn, strict=True)]
            alive = list(enumerate(own))
            depth = 0
            while alive:
                survivors = []
                for number, chosen in alive:
                    steps = rungs.probed_rungs(number, chosen.rungs)
                    step = steps[depth]
                    if space.search.mode != "explore" or step == chosen.rungs[-1]:
                        stopped.append((chosen, chosen.rungs[-1]))
                    elif rungs.decide(step, number, values[number]).go_on:
                        survivors.append((number, chosen))
                    else:
                        stopped.append((chosen, step))
                alive, depth = survivors, depth + 1
        return stopped
