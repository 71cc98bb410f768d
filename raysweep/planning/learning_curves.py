"""Learning curves for simulated sweeps: the metrics that probes would measure, random or from an earlier study."""

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
    """The metric that probes measure, by configuration and step."""

    noise: float  # standard deviation of a probe with `probe.samples` samples, without the noise that all trials share

    def final(self, chosen: Configuration) -> float:
        """The noise-free metric of a configuration at its end."""

    def __call__(self, chosen: Configuration, step: int, larger: int = 1) -> float:
        """The metric of a configuration at a step, measured with `larger` times as many samples as usual."""


@dataclass
class Synthetic:
    """Curves that fall as a power of the step to a final value, which differs from configuration to configuration.

    At step s of N a curve has the value final · (s/N)^-fall. The exponent varies between configurations, so curves
    cross. A probe adds noise. Final values are the reference values, or drawn at random where there are none.
    """

    seed: int = 0
    fall: float = 0.45
    spread: float = 0.15  # relative standard deviation of the exponents
    noise: float = 0.1  # standard deviation of one probe, in units of the metric
    finals: Sequence[float] = (20.0, 25.0, 30.0, 35.0)

    def final(self, chosen: Configuration) -> float:
        """The noise-free metric of a configuration at its end."""
        chance = random.Random(f"{self.seed} {chosen.run.model_dump_json()}")
        drawn = random.Random(chance.random()).choice(self.finals) * math.exp(chance.gauss(0, 0.03))
        return drawn if chosen.reference is None else chosen.reference

    def __call__(self, chosen: Configuration, step: int, larger: int = 1) -> float:
        """The metric of a configuration at a step, with a probe's noise."""
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
        """The curves of a study."""
        metric, error = study.metric, error_name(study.metric)
        measured = {t.number: {step: m[metric] for step, m in t.probes.items()} for t in study.distinct if t.probes}
        errors = [m[error] for trial in study.distinct for m in trial.probes.values() if error in m]
        curves = {point_key(study.trials[number].point): curve for number, curve in measured.items()}
        return cls(curves, statistics.fmean(errors) if errors else 0.0)

    def known(self, chosen: Configuration) -> bool:
        """Whether the configuration was measured at all."""
        return point_key(chosen.point) in self.curves

    def final(self, chosen: Configuration) -> float:
        """The measured metric of a configuration at its end."""
        return self(chosen, chosen.run.steps)

    def __call__(self, chosen: Configuration, step: int, larger: int = 1) -> float:
        """The metric that was measured at a step. `larger` is ignored.

        The curve of a trial that was pruned before that step is extended from its last value by the geometric mean of
        the relative changes of the trials that were measured at both steps.
        """
        curve = self.curves[point_key(chosen.point)]
        if step in curve:
            return curve[step]
        last = max((measured for measured in curve if measured < step), default=min(curve))
        falls = [math.log(other[step] / other[last]) for other in self.curves.values() if {step, last} <= set(other)]
        return curve[last] * math.exp(sum(falls) / len(falls)) if falls else curve[last]
