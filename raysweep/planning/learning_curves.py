"""Learning curves for simulated sweeps: what probes would say, drawn by chance or measured by an earlier study."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raysweep.space.configurations import Configuration
from raysweep.space.domains import PointKey, point_key
from raysweep.study.state import StudyState
from trainables.config import error_name


class Curve(Protocol):
    """What probes say of configurations."""

    noise: float  # standard deviation of one probe of `probe.samples`, but for what all trials have in common

    def final(self, chosen: Configuration) -> float:
        """What a configuration is worth at its end."""

    def __call__(self, chosen: Configuration, step: int, larger: int = 1) -> float:
        """The metric of a configuration at a step, as a probe of `larger` times as many samples would measure it."""


@dataclass
class Synthetic:
    """Curves that fall as a power of the step to a final value of each configuration's own.

    At step s of N: final · (s/N)^-fall, with a slope that differs from one to another, so that they cross; a probe adds
    noise. The final values are the published ones, or drawn like them.
    """

    seed: int = 0
    fall: float = 0.45
    spread: float = 0.15  # standard deviation of the slopes, relative
    noise: float = 0.1  # standard deviation of one probe, in units of the metric
    finals: Sequence[float] = (20.0, 25.0, 30.0, 35.0)

    def final(self, chosen: Configuration) -> float:
        """What the configuration is truly worth at its end."""
        chance = random.Random(f"{self.seed} {chosen.run.model_dump_json()}")
        drawn = random.Random(chance.random()).choice(self.finals) * math.exp(chance.gauss(0, 0.03))
        return drawn if chosen.published is None else chosen.published

    def __call__(self, chosen: Configuration, step: int, larger: int = 1) -> float:
        """As a probe would measure it."""
        name = f"{self.seed} {chosen.run.model_dump_json()}"
        slope = self.fall * math.exp(random.Random(f"slope {name}").gauss(0, self.spread))
        error = random.Random(f"probe {step} {larger} {name}").gauss(0, self.noise / larger**0.5)
        return self.final(chosen) * (step / chosen.run.steps) ** -slope + error


@dataclass
class Recorded:
    """The curves that a study has measured, by configuration and step."""

    curves: Mapping[PointKey, Mapping[int, float]]
    noise: float = 0.0

    @classmethod
    def of(cls, study: StudyState) -> Recorded:
        """Those of a study whose journal is in a store."""
        metric, error = study.metric, error_name(study.metric)
        measured = {t.number: {step: m[metric] for step, m in t.probes.items()} for t in study.distinct if t.probes}
        errors = [m[error] for trial in study.distinct for m in trial.probes.values() if error in m]
        curves = {point_key(study.trials[number].point): curve for number, curve in measured.items()}
        return cls(curves, statistics.fmean(errors) if errors else 0.0)

    def known(self, chosen: Configuration) -> bool:
        """Whether the configuration was measured at all."""
        return point_key(chosen.point) in self.curves

    def final(self, chosen: Configuration) -> float:
        """Its value at its end."""
        return self(chosen, chosen.run.steps)

    def __call__(self, chosen: Configuration, step: int, larger: int = 1) -> float:
        """What was measured at that step, whatever the
        size of the probe; of a trial that was pruned before, its last value times how far those that
        went on came from there, in the geometric mean."""
        curve = self.curves[point_key(chosen.point)]
        if step in curve:
            return curve[step]
        last = max((measured for measured in curve if measured < step), default=min(curve))
        falls = [math.log(other[step] / other[last]) for other in self.curves.values() if {step, last} <= set(other)]
        return curve[last] * math.exp(sum(falls) / len(falls)) if falls else curve[last]
