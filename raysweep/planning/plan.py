"""What search spaces will cost, before anything is spent. Needs the spaces alone: no data, no Ray, no torch."""

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

DRAWS = 8  # of random results, where not all configurations have published ones
MANY = 500  # configurations from which on one draw tells enough

Reached = list[tuple[Configuration, int]]  # and the step that it came to


@dataclass
class Cost:
    """What an execution takes."""

    steps: float = 0
    training_gpu_s: float = 0
    probes: float = 0
    probes_gpu_s: float = 0
    checkpoints: float = 0
    checkpoints_gib: float = 0

    @property
    def gpu_hours(self) -> float:
        """Of training and of probes."""
        return (self.training_gpu_s + self.probes_gpu_s) / 3600

    def as_dict(self, price_per_gpu_hour: float | None) -> dict[str, float]:
        """As plain data, GPU time in hours."""
        facts = {"steps": self.steps, "gpu_hours": self.gpu_hours, "probe_gpu_hours": self.probes_gpu_s / 3600}
        facts |= {"probes": self.probes, "checkpoints": self.checkpoints, "checkpoints_gib": self.checkpoints_gib}
        return facts | ({"money": self.gpu_hours * price_per_gpu_hour} if price_per_gpu_hour is not None else {})


@dataclass
class Costs:
    """The same trials, carried out in three ways: each stage once; each trial alone, with every distinct teacher
    trained once by hand; each trial alone, with a teacher of its own."""

    together: Cost
    by_hand: Cost
    apart: Cost
    assumed: str  # about the results that decide what is pruned; nothing where nothing is


class Plan:
    """The configurations of several spaces, each to its end, and the stages that they have in common."""

    def __init__(self, spaces: Sequence[Space]):
        self.notes: list[str] = []
        self.trials = [chosen for space in spaces for chosen in configurations(space, self.notes)]
        self.spaces = list(spaces)
        self._tree = Tree(sorted({step for space in spaces for step in runs.milestones(space)}))
        for chosen in self.trials:
            self._tree.add(chosen.run, chosen.run.steps)

    @property
    def segments(self) -> list[Segment]:
        """All stretches of training, parents and teachers before those who need them."""
        return self._tree.segments

    @property
    def schedulers(self) -> str:
        """By what trials are pruned."""
        return ", ".join(sorted({each.search.scheduler.kind for each in self.spaces if each.search.mode == "explore"}))

    @property
    def critical_path(self) -> int:
        """Steps that follow each other whatever the number of machines: a teacher, then its student."""
        done: dict[int, int] = {}
        for segment in self.segments:
            before = [done[other] for other in (segment.parent, segment.teacher) if other is not None]
            done[segment.number] = segment.steps + max(before, default=0)
        return max(done.values(), default=0)

    @cached_property
    def grid(self) -> Costs:
        """Every configuration to its end."""
        return self._costs([[(chosen, chosen.run.steps) for chosen in self.trials]], "")

    @cached_property
    def expected(self) -> Costs | None:
        """What the schedulers are expected to leave of it; None where no space asks for pruning."""
        if all(space.search.mode != "explore" for space in self.spaces):
            return None
        known = [chosen.published for chosen in self.trials if chosen.published is not None]
        if len(known) == len(self.trials):
            draws, how = 1, "the published FID at every rung"
        else:
            draws = 1 if len(self.trials) > MANY else DRAWS
            how = "published FIDs, and others like them" if known else "random results"
            how += f" where there are none, in the mean of {draws}" if known else f", in the mean of {draws}"
        reached = [self._play(random.Random(draw), known) for draw in range(draws)]
        return self._costs(reached, f"all come to a rung before any goes on, in the order of proposal; {how}")

    def as_dict(self, price_per_gpu_hour: float | None = None) -> dict[str, Any]:
        """As plain data."""
        facts: dict[str, Any] = {"configurations": len(self.trials), "stages": len(self.segments)}
        facts |= {"critical_path_steps": self.critical_path, "notes": self.notes, "assumed": price.ASSUMED}
        for name, costs in (("grid", self.grid), ("expected", self.expected)):
            if costs:
                facts[name] = {
                    "together": costs.together.as_dict(price_per_gpu_hour),
                    "teachers_by_hand": costs.by_hand.as_dict(price_per_gpu_hour),
                    "apart": costs.apart.as_dict(price_per_gpu_hour),
                    "assumed": costs.assumed,
                }
        return facts

    # --- inside

    def _costs(self, draws: Sequence[Reached], assumed: str) -> Costs:
        """The mean over several ways that it may go."""
        costs = Costs(Cost(), Cost(), Cost(), assumed)
        for reached in draws:
            share = 1 / len(draws)
            ways = [(chosen, self._way(chosen, step)) for chosen, step in reached]
            own = Counter(number for _, way in ways for number in way)
            taught = [teacher for chosen, step in reached if step for teacher in runs.teachers(chosen.run)]
            chains = [tuple(self._tree.chain(teacher.run, teacher.step)) for teacher in taught]
            apart = own + Counter(number for chain in chains for number in chain)
            by_hand = own + Counter(number for chain in set(chains) for number in chain)
            # Trials that are still the same at a rung share its probe.
            every = Counter((n, c.probe) for c, way in ways for n in way if self.segments[n].end in c.rungs)
            self._add(costs.together, Counter(set(apart)), Counter(set(every)), share)
            self._add(costs.by_hand, by_hand, every, share)
            self._add(costs.apart, apart, every, share)
        return costs

    def _way(self, chosen: Configuration, step: int) -> list[int]:
        """The stages of a configuration's own run as far as `step`, where it publishes."""
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

    def _play(self, chance: random.Random, known: Sequence[float]) -> Reached:
        """How far each trial comes: all to a rung in the order of proposal, then those that go on to the next."""
        reached: Reached = []
        for space in self.spaces:
            own = [chosen for chosen in self.trials if chosen.space is space]
            rungs = Rungs(space.search.scheduler, len(space.rungs(space.trial({})[0])) - 1)
            others = [chance.choice(known) if known else chance.random() for _ in own]
            worth = [other if c.published is None else c.published for c, other in zip(own, others, strict=True)]
            alive = list(enumerate(own))
            depth = 0
            while alive:
                going = []
                for number, chosen in alive:
                    steps = rungs.judged(number, chosen.rungs)
                    step = steps[depth]
                    if space.search.mode != "explore" or step == chosen.rungs[-1]:
                        reached.append((chosen, chosen.rungs[-1]))
                    elif rungs.decide(step, number, worth[number]).go_on:
                        going.append((number, chosen))
                    else:
                        reached.append((chosen, step))
                alive, depth = going, depth + 1
        return reached
