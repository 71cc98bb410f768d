"""How a snapshot is judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.spec.base import Spec, WrongKey, effnet_missing

Time = Annotated[float, Field(ge=0, le=1)]
Judged = Literal["fid", "is", "kid", "precision", "recall"]


class ProbeSpec(Spec):
    """How a snapshot is judged: how many samples, by which sampler, through which detector.

    `seed` fixes noise and labels, so that every trial of a study draws the same ones.
    """

    detector: Literal["inception", "effnet_lite0"] = "inception"
    metrics: tuple[Judged, ...] = ("fid", "is")  # the first one decides: lower must be better
    samples: Annotated[int, Field(gt=1)] = 10_000
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"
    steps: Annotated[int, Field(gt=0)] = 250
    timestep_shift: Annotated[float, Field(gt=0)] = 1.0  # of the ODE samplers; LightningDiT: 0.3
    guidance_scale: float = 1.0  # classifier-free; 1 is none
    guidance_interval: tuple[Time, Time] = (0.0, 1.0)  # where guidance acts, t=0 being data
    batch_size: Annotated[int, Field(gt=0)] = 250
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _options_fit(self) -> ProbeSpec:
        if not self.metrics or self.metrics[0] not in ("fid", "kid"):
            raise WrongKey("metrics", "the first metric decides, and must be one that falls: fid or kid")
        if len(set(self.metrics)) < len(self.metrics):
            raise WrongKey("metrics", f"{list(self.metrics)} names one twice")
        if self.timestep_shift != 1 and self.sampler == "euler_maruyama":
            raise WrongKey("timestep_shift", "the SDE has times of its own; use sampler euler or heun")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise WrongKey("guidance_interval", f"{list(self.guidance_interval)} is reversed; write [low, high]")
        return self

    def name(self, judged: Judged) -> str:
        """A metric's name with all that decides whether numbers compare: `fid_10k` for the Inception that FID means,
        `fd_effnet_1k` for another detector's distance."""
        if self.detector == "inception":
            return f"{judged}_{count_name(self.samples)}"
        return f"{'fd' if judged == 'fid' else judged}_effnet_{count_name(self.samples)}"

    @property
    def metric(self) -> str:
        """The name of the metric that decides."""
        return self.name(self.metrics[0])

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of all metrics."""
        return tuple(map(self.name, self.metrics))

    @property
    def reported(self) -> tuple[str, ...]:
        """Those names, each before that of its standard error."""
        return tuple(name for metric in self.measured for name in (metric, error_name(metric)))

    @property
    def missing(self) -> str | None:
        """Why this machine cannot probe so, or None where it can."""
        if self.detector == "inception":
            return "no loader for the FID Inception's weights yet; use --set probe.detector=effnet_lite0"
        return effnet_missing()


def count_name(count: int) -> str:
    """1000 -> '1k', 1500 -> '1500'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def error_name(metric: str) -> str:
    """The name of a metric's standard error."""
    return f"{metric}_se"
