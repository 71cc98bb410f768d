"""How a snapshot is evaluated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainables.config.base import Spec, WrongKey

Time = Annotated[float, Field(ge=0, le=1)]
Metric = Literal["fid", "sfid", "is", "kid", "precision", "recall", "fid_infinity", "fid_floor"]
INCEPTION_SHA256 = "6726825d"  # beginning of the SHA-256 of the FID Inception's weights
# Fewest samples: IS is a mean over ten parts; precision and recall use the third neighbour; FID-infinity needs
# quarters of two samples.
MIN_SAMPLES: dict[Metric, int] = {"is": 10, "precision": 4, "recall": 4, "fid_infinity": 8}
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]  # a SHA-256 in hex, or the beginning of it


class ProbeSpec(Spec):
    """How a snapshot is evaluated: the number of samples, the sampler, the detector and the metrics.

    `seed` fixes noise and labels, so that every trial of a study draws the same ones.
    """

    detector: Literal["inception", "effnet_lite0"] = "inception"
    """The network whose features are compared."""
    resize: Literal["tensorflow", "clean", "pytorch"] = "tensorflow"
    """How images are resized to the Inception's 299 px: as TensorFlow (ADM's evaluator), clean-fid or pytorch-fid
    do.
    """
    detector_weights: str | None = None
    """File with the Inception's weights. Default: where pytorch-fid and torch-fidelity put it."""
    detector_sha256: Digest = INCEPTION_SHA256
    """SHA-256 of that file, or the beginning of it."""
    reference: str | None = None
    """Statistics of real images: ADM's .npz, or any .npz with mu and sigma. Default: the data set's own training
    images.
    """
    reference_sha256: Digest | None = None
    """SHA-256 of the reference file, or the beginning of it. Default: computed when the space is loaded."""
    metrics: tuple[Metric, ...] = ("fid", "is")
    """Metrics to compute. The first one decides, and lower must be better."""
    samples: Annotated[int, Field(gt=1)] = 10_000
    """Number of samples drawn for a probe."""
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"
    """ODE samplers are `euler` and `heun`; `euler_maruyama` integrates the SDE."""
    steps: Annotated[int, Field(gt=0)] = 250
    """Number of sampler steps."""
    timestep_shift: Annotated[float, Field(gt=0)] = 1.0
    """Shift of the ODE samplers' times; LightningDiT uses 0.3."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none."""
    guidance_interval: tuple[Time, Time] = (0.0, 1.0)
    """Times between which guidance acts; t=0 is data."""
    batch_size: Annotated[int, Field(gt=0)] = 250
    """Samples drawn together."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of noise and labels, the same for all trials."""

    @model_validator(mode="after")
    def _options_fit(self) -> ProbeSpec:
        if not self.metrics or self.metrics[0] not in ("fid", "kid"):
            raise WrongKey("metrics", "the first metric decides, and lower must be better: put fid or kid first")
        if self.detector != "inception":
            for key in ("resize", "detector_weights", "detector_sha256", "reference"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise WrongKey(key, "this needs detector: inception; leave this out")
            if "sfid" in self.metrics:
                raise WrongKey(
                    "metrics", "sfid needs the Inception's inner features; leave it out, or use detector: inception"
                )
        if self.reference_sha256 and not self.reference:
            raise WrongKey(
                "reference_sha256",
                "this is the SHA-256 of a reference file: give that file as reference, or leave this out",
            )
        for metric, least in MIN_SAMPLES.items():
            if metric in self.metrics and self.samples < least:
                raise WrongKey("samples", f"{metric} needs {least} or more")
        if len(set(self.metrics)) < len(self.metrics):
            raise WrongKey("metrics", f"{list(self.metrics)} has a metric twice; keep one")
        if self.timestep_shift != 1 and self.sampler == "euler_maruyama":
            raise WrongKey("timestep_shift", "the SDE has fixed times; use sampler euler or heun, or leave this out")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise WrongKey("guidance_interval", f"{list(self.guidance_interval)} is reversed; write [low, high]")
        return self

    def name(self, metric: Metric) -> str:
        """The full name of a metric. Two numbers are comparable if their full names are equal.

        `fid_10k` is the standard FID of 10,000 samples, `fid_clean_10k` that with clean-fid's resizing, and
        `fd_effnet_1k` the Fréchet distance of another detector's features.
        """
        if self.detector == "inception":
            marks = ["" if self.resize == "tensorflow" else f"_{self.resize}"]
            marks.append("" if self.detector_sha256.startswith(INCEPTION_SHA256) else f"_{self.detector_sha256[:8]}")
            return f"{metric}{''.join(marks)}_{count_name(self.samples)}"
        return f"{metric.replace('fid', 'fd')}_effnet_{count_name(self.samples)}"

    @property
    def detector_name(self) -> str:
        """The detector's name as it stands in file names. For the Inception it has the resizing and the beginning of
        the SHA-256 of the weights."""
        if self.detector == "inception":
            return f"inception-{self.resize}-{self.detector_sha256[:8]}"
        return self.detector

    @property
    def metric(self) -> str:
        """The full name of the metric that decides."""
        return self.name(self.metrics[0])

    @property
    def measured(self) -> tuple[str, ...]:
        """The full names of all metrics."""
        return tuple(map(self.name, self.metrics))

    @property
    def reported(self) -> tuple[str, ...]:
        """The full names of all metrics, each followed by the name of its standard error."""
        return tuple(name for metric in self.measured for name in (metric, error_name(metric)))

    def described(self) -> dict[str, Any]:
        """The values that decide the probe's numbers, as plain data. Paths of files are left out."""
        return self.model_dump(mode="json", exclude={"detector_weights", "reference"})


def count_name(count: int) -> str:
    """1000 -> '1k', 1500 -> '1500'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


GRID_COLUMNS = 10  # most columns of a probe's grid of samples, one per class


def error_name(metric: str) -> str:
    """The name of a metric's standard error."""
    return f"{metric}_se"
