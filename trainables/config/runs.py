"""A trial as a search space writes it, and the runs that it needs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainables.config.backbones import BACKBONES, BackboneSize
from trainables.config.base import Spec, Steps, WrongKey
from trainables.config.methods import Method, NoMethod, TeacherPrecision, Term


class EncoderSpec(Spec):
    """REPA's frozen image encoder. The checksum of its weights enters history keys; its path does not."""

    kind: Literal["dinov2", "effnet_lite0"] = "dinov2"
    """`dinov2`, or the small `effnet_lite0` of the laptop extra."""
    path: str | None = None
    """Folder of a dinov2 model in transformers' format."""


class OptimizerSpec(Spec):
    """AdamW at a constant learning rate, as in REPA's train.py."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate, constant."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Constant that is added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest joint norm of all gradients; null does not clip."""


# The fields of a recipe that, with the step, decide the batch: images, times, noise and labels.
BATCH_FIELDS = frozenset({"data", "batch_size", "seed", "label_dropout", "time", "path", "horizontal_flip"})


class Recipe(Spec):
    """What a teacher and its student share: everything but the method and the number of steps."""

    backbone: str = "SiT-B/2"
    """SiT-S/2 … SiT-XL/8, LightningDiT-B/1 … LightningDiT-XL/2."""
    data: str = "imagenet256"
    """Name of a data set, or the folder or URI of a prepared one."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """Images per step over all workers."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, data order, times, noise and label dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of forward and backward; weights are kept in fp32."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Options of AdamW."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay per step of the averaged (EMA) weights."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of images whose label becomes the null class."""
    time: Literal["uniform", "log_normal"] = "uniform"
    """Distribution of the training times."""
    path: Literal["linear", "cosine"] = "linear"
    """Interpolation from data to noise."""
    velocity_cosine: Annotated[float, Field(ge=0)] = 0.0
    """Weight of LightningDiT's cosine loss, 1 - cos(velocity, target)."""
    horizontal_flip: bool = False
    """Mirror each image with probability 1/2. Leave this off if the data set already contains the mirrored images."""

    @property
    def size(self) -> BackboneSize:
        return BACKBONES[self.backbone]

    @model_validator(mode="after")
    def _names_are_known(self) -> Recipe:
        if self.backbone not in BACKBONES:
            raise WrongKey("backbone", f"no backbone '{self.backbone}'; known: {', '.join(BACKBONES)}")
        return self


# Defaults that a family's authors use instead of those above (LightningDiT: train.py, configs).
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

    iterations: Steps = 400_000
    """Optimizer steps."""
    projector_width: Annotated[int, Field(gt=0)] = 2048
    """Hidden width of the method's projector."""
    encoder: EncoderSpec = EncoderSpec()
    """The frozen encoder that repa aligns to."""
    method: Method = NoMethod()
    """The loss that is added to the diffusion loss."""

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
        if method.teacher_spec:
            self._check(method.teacher_spec.method, f"{key}.teacher.method")


class TeacherRef(Spec):
    """A checkpoint that guides another run: its run, its step, and which of its weights."""

    run: Run
    step: Steps
    weights: Literal["ema", "raw"] = "ema"
    precision: TeacherPrecision | None = None


class Phase(Spec):
    """Consecutive steps of a run with one term. It begins where the phase before it ends, and ends at step `until`."""

    until: Steps
    """Last step of the phase."""
    term: Term
    """The loss that is added to the diffusion loss."""
    projector_width: int | None = None
    """None where the term has no projector."""
    encoder: EncoderSpec | None = None
    """None where the term needs no encoder."""
    teacher: TeacherRef | None = None
    """None where the term needs no teacher."""


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
