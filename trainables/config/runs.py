"""A trial as a search space writes it, and the runs that it needs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainables.config.backbones import BACKBONES, BackboneSize
from trainables.config.base import Spec, Steps, WrongKey, effnet_missing
from trainables.config.methods import Method, NoMethod, SelfGuided, TeacherPrecision, Term
from trainables.datasets import catalog, prepared


class EncoderSpec(Spec):
    """REPA's frozen encoder of images. Its weights' checksum enters the history, its path does not."""

    kind: Literal["dinov2", "effnet_lite0"] = "dinov2"  # effnet_lite0 installs with the laptop extra
    path: str | None = None  # dinov2: a folder in transformers' form

    @property
    def missing(self) -> str | None:
        """Why this machine cannot encode so, or None where it can."""
        if self.kind == "effnet_lite0":
            return effnet_missing()
        if self.path is None:
            return "repa looks up to DINOv2; give its folder: --set trial.encoder.path=FOLDER"
        try:
            catalog.encoder_files(self.kind, self.path)
        except LookupError as error:
            return f"trial.encoder.path: {error.args[0]}"
        return None if find_spec("transformers") else "dinov2 needs transformers: pip install 'raysweep[repa]'"


class OptimizerSpec(Spec):
    """AdamW at a constant rate, after REPA's train.py."""

    lr: Annotated[float, Field(gt=0)] = 1e-4  # learning rate, constant
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # decay of the first moment
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay of the second moment
    eps: Annotated[float, Field(gt=0)] = 1e-8  # added to the denominator
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # decoupled
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0  # largest norm of all gradients together


# Of a recipe: what decides, with the step, which images a run sees, at which times, under which noise and labels.
OF_THE_BATCH = frozenset({"data", "batch_size", "seed", "label_dropout", "time", "path", "horizontal_flip"})


class Recipe(Spec):
    """What a teacher and its student have in common: everything but the method and the length."""

    backbone: str = "SiT-B/2"  # SiT-S/2 … SiT-XL/8, LightningDiT-B/1 … LightningDiT-XL/2
    data: str = "imagenet256"  # a data set's name, or the place where it was prepared
    batch_size: Annotated[int, Field(gt=0)] = 256  # of all workers together
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # of weights, data order, times, noise, label dropout
    precision: Literal["fp32", "bf16"] = "fp32"  # of forward and backward; weights are kept in fp32
    optimizer: OptimizerSpec = OptimizerSpec()  # AdamW
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999  # of the averaged weights, a step
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of images whose label is the null class
    time: Literal["uniform", "log_normal"] = "uniform"  # how training times are drawn
    path: Literal["linear", "cosine"] = "linear"  # from data to noise
    velocity_cosine: Annotated[float, Field(ge=0)] = 0.0  # weight of 1 - cosine(velocity, target), as LightningDiT
    horizontal_flip: bool = False  # each image mirrored with probability 1/2; off where the stored set has both

    @property
    def size(self) -> BackboneSize:
        return BACKBONES[self.backbone]

    @model_validator(mode="after")
    def _names_are_known(self) -> Recipe:
        if self.backbone not in BACKBONES:
            raise WrongKey("backbone", f"no backbone '{self.backbone}'; known: {', '.join(BACKBONES)}")
        return self

    @field_validator("data")
    @classmethod
    def _place_is_absolute(cls, data: str) -> str:
        """A folder is one and the same for all processes, whatever their working directory."""
        return prepared.locate(data) or data if "/" in data else data


# What differs from the defaults above where the family's authors train it otherwise (LightningDiT: train.py, configs).
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "SiT": {},
    "LightningDiT": {
        "data": "imagenet256_vavae",
        "batch_size": 1024,
        "optimizer": {"lr": 2e-4, "beta2": 0.95},
        "time": "log_normal",
        "velocity_cosine": 1.0,
        "horizontal_flip": True,
    },
}


class Trial(Recipe):
    """One point of a search, in the units of its search space. Defaults are those of the backbone's family."""

    iterations: Steps = 400_000  # optimizer steps
    projector_width: Annotated[int, Field(gt=0)] = 2048  # hidden width of the method's projector
    encoder: EncoderSpec = EncoderSpec()  # whom repa looks up to
    method: Method = NoMethod()  # the loss that joins the diffusion loss

    @model_validator(mode="before")
    @classmethod
    def _as_the_family_trains(cls, values: Any) -> Any:
        size = BACKBONES.get(values.get("backbone", "")) if isinstance(values, dict) else None
        if size is None:
            return values
        given = dict(FAMILY_DEFAULTS[size.family])
        if isinstance(values.get("optimizer", {}), dict):
            values = {**values, "optimizer": {**given.get("optimizer", {}), **values.get("optimizer", {})}}
        return {**given, **values}

    @model_validator(mode="after")
    def _fits_together(self) -> Trial:
        self._check(self.method, "method")
        return self

    def _check(self, method: Method, key: str) -> None:
        for name, blocks in method.blocks.items():
            for block in blocks:
                if block > self.size.depth:
                    has = f"{self.backbone}'s {self.size.depth} blocks (counted from 1)"
                    raise WrongKey(f"{key}.{name}", f"block {block} is beyond {has}")
        if isinstance(method, SelfGuided):
            self._check(method.teacher.method, f"{key}.teacher.method")


class TeacherRef(Spec):
    """A checkpoint that another run looks up to."""

    run: Run
    step: Steps
    weights: Literal["ema", "raw"] = "ema"
    precision: TeacherPrecision | None = None


class Phase(Spec):
    """A stretch of steps with one term, up to and including step `until`."""

    until: Steps
    term: Term
    projector_width: int | None = None  # None where the term has no projector
    encoder: EncoderSpec | None = None  # of repa
    teacher: TeacherRef | None = None


class Run(Recipe):
    """One continuous training from step 0, in optimizer steps; its phases follow each other."""

    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    @property
    def steps(self) -> int:
        return self.phases[-1].until

    def phase_after(self, step: int) -> Phase:
        """The phase that trains the step from `step` to `step + 1`."""
        return next(phase for phase in self.phases if phase.until > step)


TeacherRef.model_rebuild()
