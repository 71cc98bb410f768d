"""How a snapshot is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zipfile import BadZipFile, ZipFile

from pydantic import Field, model_validator

from trainables.config.base import Spec, WrongKey, effnet_missing
from trainables.datasets import catalog

_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
_ADM += "VIRTUAL_imagenet256_labeled.npz"
_SAMPLES = ("arr_0",)  # images
_COMPARED_WITH = {  # what a reference file must have
    "fid": ("mu", "sigma"),
    "fid_infinity": ("mu", "sigma"),
    "fid_floor": ("mu", "sigma"),
    "sfid": ("mu_s", "sigma_s"),
    "kid": _SAMPLES,
    "precision": _SAMPLES,
    "recall": _SAMPLES,
}
Time = Annotated[float, Field(ge=0, le=1)]
Judged = Literal["fid", "sfid", "is", "kid", "precision", "recall", "fid_infinity", "fid_floor"]
# Samples at least: IS is a mean over ten parts, neighbours are the third ones, and quarters must be samples too.
LEAST: dict[Judged, int] = {"is": 10, "precision": 4, "recall": 4, "fid_infinity": 8}
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]  # how a SHA-256 begins


class ProbeSpec(Spec):
    """How a snapshot is judged: how many samples, by which sampler, through which detector.

    `seed` fixes noise and labels, so that every trial of a study draws the same ones.
    """

    detector: Literal["inception", "effnet_lite0"] = "inception"  # the network whose features are compared
    resize: Literal["tensorflow", "clean", "pytorch"] = "tensorflow"  # to the Inception's size: as ADM, as clean-fid
    detector_weights: str | None = None  # the Inception's file; default: where pytorch-fid and torch-fidelity put it
    detector_sha256: Digest = catalog.INCEPTION_SHA256  # how that of the file begins
    reference: str | None = None  # ADM's .npz, or any with mu and sigma; default: the data set's own training images
    reference_sha256: Digest | None = None  # found out at the start, where it is not given
    metrics: tuple[Judged, ...] = ("fid", "is")  # the first one decides: lower must be better
    samples: Annotated[int, Field(gt=1)] = 10_000  # drawn for a probe
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"  # the last is the SDE's
    steps: Annotated[int, Field(gt=0)] = 250  # of the sampler
    timestep_shift: Annotated[float, Field(gt=0)] = 1.0  # of the ODE samplers; LightningDiT: 0.3
    guidance_scale: float = 1.0  # classifier-free; 1 is none
    guidance_interval: tuple[Time, Time] = (0.0, 1.0)  # where guidance acts, t=0 being data
    batch_size: Annotated[int, Field(gt=0)] = 250  # samples that are drawn together
    seed: Annotated[int, Field(ge=0)] = 0  # of noise and labels, the same for all trials

    @model_validator(mode="after")
    def _options_fit(self) -> ProbeSpec:
        if not self.metrics or self.metrics[0] not in ("fid", "kid"):
            raise WrongKey("metrics", "the first metric decides, and must be one that falls: fid or kid")
        if self.detector != "inception":
            for key in ("resize", "detector_weights", "detector_sha256", "reference"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise WrongKey(key, "only with detector: inception; leave this out")
            if "sfid" in self.metrics:
                raise WrongKey("metrics", "sfid looks into the Inception; leave it out, or use detector: inception")
        if self.reference_sha256 and not self.reference:
            raise WrongKey("reference_sha256", "this is of a file: give it as reference, or leave this out")
        for metric, least in LEAST.items():
            if metric in self.metrics and self.samples < least:
                raise WrongKey("samples", f"{metric} needs {least} or more")
        if len(set(self.metrics)) < len(self.metrics):
            raise WrongKey("metrics", f"{list(self.metrics)} names one twice")
        if self.timestep_shift != 1 and self.sampler == "euler_maruyama":
            raise WrongKey("timestep_shift", "the SDE has times of its own; use sampler euler or heun")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise WrongKey("guidance_interval", f"{list(self.guidance_interval)} is reversed; write [low, high]")
        return self

    def name(self, judged: Judged) -> str:
        """A metric's name with what decides whether numbers compare: `fid_10k` for the Inception that FID means, its
        images resized as it does itself, `fid_clean_10k` as clean-fid does, `fd_effnet_1k` for another detector."""
        if self.detector == "inception":
            marks = ["" if self.resize == "tensorflow" else f"_{self.resize}"]
            marks.append(
                "" if self.detector_sha256.startswith(catalog.INCEPTION_SHA256) else f"_{self.detector_sha256[:8]}"
            )
            return f"{judged}{''.join(marks)}_{count_name(self.samples)}"
        return f"{judged.replace('fid', 'fd')}_effnet_{count_name(self.samples)}"

    @property
    def detector_name(self) -> str:
        """What images are seen by, as files are named after it: its kind, and for the Inception how its images are
        resized and how the SHA-256 of its weights begins."""
        if self.detector == "inception":
            return f"inception-{self.resize}-{self.detector_sha256[:8]}"
        return self.detector

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
        if self.detector != "inception":
            return effnet_missing()
        return self._detector_fault() or (self._reference_fault(Path(self.reference)) if self.reference else None)

    def _detector_fault(self) -> str | None:
        try:
            weights = catalog.inception_file(self.detector_weights)
        except LookupError as error:
            return f"{error.args[0]}: --set probe.detector_weights=FILE; or use --set probe.detector=effnet_lite0"
        found = catalog.file_identity(weights)
        if found.startswith(self.detector_sha256):
            return None
        told = f"the SHA-256 of {weights} begins with {found[:8]}, not {self.detector_sha256}"
        return f"{told}; numbers of other weights get a name of their own: --set probe.detector_sha256={found[:8]}"

    def _reference_fault(self, file: Path) -> str | None:
        if not file.is_file():
            return f"no reference statistics at '{file}'; ADM's are {_ADM}: --set probe.reference=FILE"
        found = catalog.file_identity(file)
        if self.reference_sha256 and not found.startswith(self.reference_sha256):
            return f"the SHA-256 of {file} begins with {found[:8]}, not {self.reference_sha256[:8]}"
        try:
            with ZipFile(file) as arrays:
                there = {Path(name).stem for name in arrays.namelist()}
        except BadZipFile:
            return f"{file} is no .npz; ADM's are {_ADM}"
        for metric in self.metrics:
            if lacking := [name for name in _COMPARED_WITH.get(metric, ()) if name not in there]:
                return f"{file} has no {' and '.join(lacking)}, which {metric} compares with; leave {metric} out"
        return None

    def pinned(self) -> Self:
        """The same, with the SHA-256 of the reference file where that is here: other statistics are another probe."""
        if self.reference is None or self.reference_sha256 or not Path(self.reference).is_file():
            return self
        return self.model_copy(update={"reference_sha256": catalog.file_identity(Path(self.reference))})

    def described(self) -> dict[str, Any]:
        """What decides its numbers, as plain data: not where files lie."""
        return self.model_dump(mode="json", exclude={"detector_weights", "reference"})


def count_name(count: int) -> str:
    """1000 -> '1k', 1500 -> '1500'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


GRID_COLUMNS = 10  # of a probe's picture, one a class: at most so many


def error_name(metric: str) -> str:
    """The name of a metric's standard error."""
    return f"{metric}_se"
