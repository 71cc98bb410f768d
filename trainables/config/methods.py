"""The losses that are added to the diffusion loss, as a search space writes them and as a run trains with them.

A *term* is the added loss of one phase of a run. A *method* is what a search space writes: a term, the step at which it
ends, and its teacher. Blocks count from 1 and are read after the block; `[m, n]` means that block m guides block n.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from trainables.config.backbones import BackboneSize
from trainables.config.base import Spec, Steps, WrongKey

Block = Annotated[int, Field(ge=1)]


class Schedule(Spec):
    """A weight that changes with the step: `weights[i]` at `steps[i]`, constant before the first and after the last.

    Between two steps the weight is interpolated linearly, or with `curve: geometric` on a logarithmic scale. Steps are
    in the units of the trial's `iterations`.
    """

    steps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Steps at which the weight is given, increasing."""
    weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
    """The weight at each of these steps."""
    curve: Literal["linear", "geometric"] = "linear"
    """Interpolation of the weight between two steps."""

    @model_validator(mode="after")
    def _is_a_curve(self) -> Schedule:
        if len(self.steps) != len(self.weights):
            raise WrongKey("weights", f"{len(self.weights)} weights for {len(self.steps)} steps; give one for each")
        if any(b <= a for a, b in pairwise(self.steps)):
            raise WrongKey("steps", f"{list(self.steps)} do not increase")
        if self.curve == "geometric" and not all(self.weights):
            raise WrongKey("weights", "a geometric curve never reaches 0; use linear")
        return self

    def scaled(self, scale: Callable[[int], int]) -> Schedule:
        """The schedule in other units of steps. If steps become equal, the first one's weight is kept."""
        points: dict[int, float] = {}
        for step, weight in zip(self.steps, self.weights, strict=True):
            points.setdefault(scale(step) if step else 0, weight)
        return self.model_copy(update={"steps": tuple(points), "weights": tuple(points.values())})

    def at(self, step: int) -> float:
        """The weight of the optimizer step that leads from `step` to `step + 1`."""
        after = bisect_right(self.steps, step)
        if after in (0, len(self.steps)):
            return self.weights[max(0, after - 1)]
        (a, b), (low, high) = self.steps[after - 1 : after + 1], self.weights[after - 1 : after + 1]
        part = (step - a) / (b - a)
        return float(low * (high / low) ** part) if self.curve == "geometric" else low + (high - low) * part


def _form(weight: Any) -> str:
    return "(schedule)" if isinstance(weight, dict | Schedule) else "(number)"


Weight = Annotated[
    Annotated[float, Field(ge=0), Tag("(number)")] | Annotated[Schedule, Tag("(schedule)")], Discriminator(_form)
]


class _Term(Spec):
    """What all terms share. The class variables say what a term needs, so that no code checks for its class."""

    has_projector: ClassVar[bool] = False
    """The term trains a projector, whose hidden width is the trial's `projector_width`."""
    has_weights: ClassVar[bool] = False
    """The term trains weights (a projector or another head), which are drawn from the run's seed."""
    needs_teacher: ClassVar[bool] = False
    """The term compares with features of a frozen teacher."""
    needs_encoder: ClassVar[bool] = False
    """The term compares with features that the trial's `encoder` computes from the clean images."""
    needs_latent_geometry: ClassVar[bool] = False
    """The target is a clean latent, so the projector's width follows from patch size and channels."""
    needs_whole_batch: ClassVar[bool] = False
    """The term compares the images of the global batch with each other, so micro-batches and unequal shares of ranks
    are not possible."""

    @property
    def teacher_spec(self) -> TeacherSpec | None:
        """The teacher of a method that needs one."""
        return None

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """The blocks that the spec names, by key."""
        return {}

    def resolved(self, size: BackboneSize) -> Self:
        """The term with its defaults filled in for a backbone of this size."""
        return self

    def scaled(self, scale: Callable[[int], int]) -> Self:
        """The term in other units of steps."""
        return self

    def weight_at(self, step: int) -> float:
        """The weight of the method's loss in the step that leads from `step` to `step + 1`."""
        return 0.0


class NoTerm(_Term):
    """The diffusion loss alone (SiT)."""

    kind: Literal["none"] = "none"


class _Weighted(_Term):
    weight: Weight = 0.5
    """Weight of the method's loss; lambda_guide of the paper for self_guided."""

    def scaled(self, scale: Callable[[int], int]) -> Self:
        if isinstance(self.weight, Schedule):
            return self.model_copy(update={"weight": self.weight.scaled(scale)})
        return self

    def weight_at(self, step: int) -> float:
        return self.weight.at(step) if isinstance(self.weight, Schedule) else self.weight


class _OneBlock(_Weighted):
    block: Block | None = None
    """The block that the method acts on, counted from 1."""

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        return {"block": (self.block,)} if self.block else {}

    def resolved(self, size: BackboneSize) -> Self:
        return self.model_copy(update={"block": self.block or self._default_block(size.depth)})

    def _default_block(self, depth: int) -> int:
        return depth // 2


class _OnePair(_Weighted):
    layers: tuple[Block, Block] | None = None
    """`[m, n]`: block m guides block n; blocks count from 1."""

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        return {"layers": self.layers or ()}


class VaeAlignTerm(_OneBlock):
    """Align one block with the clean VAE latent (Self-Transcendence, Eq. 1). Default: the middle block."""

    has_projector = has_weights = needs_latent_geometry = True
    kind: Literal["vae_align"] = "vae_align"


class SelfGuidedTerm(_OnePair):
    """Align block n with a frozen teacher's guided feature of block m (Self-Transcendence, Eq. 3 and 4). Default: block
    2/3 of the teacher guides block 1/2."""

    has_projector = has_weights = needs_teacher = True
    kind: Literal["self_guided"] = "self_guided"
    guidance_scale: float | None = None
    """Omega of Eq. 3. Default: 30 for SiT, 10 for LightningDiT."""
    target_norm: Literal["none", "layer"] = "none"
    """Normalisation of the guiding feature."""

    def resolved(self, size: BackboneSize) -> Self:
        scale = {"SiT": 30.0, "LightningDiT": 10.0}[size.family] if self.guidance_scale is None else self.guidance_scale
        layers = self.layers or (2 * size.depth // 3, size.depth // 2)
        return self.model_copy(update={"layers": layers, "guidance_scale": scale})


class RepaTerm(_OneBlock):
    """Align one block with a frozen external encoder's patch tokens (REPA). Default: block 4 of 12, else block 8."""

    has_projector = has_weights = needs_encoder = True
    kind: Literal["repa"] = "repa"

    def _default_block(self, depth: int) -> int:
        return 8 if depth > 12 else max(1, depth // 3)


class DispersiveTerm(_OneBlock):
    """Push the features of a batch's images apart in one block (Dispersive Loss). Default: the last block."""

    needs_whole_batch = True
    kind: Literal["dispersive"] = "dispersive"
    weight: Weight = 0.25
    variant: Literal["infonce_l2", "infonce_cosine", "hinge", "covariance"] = "infonce_l2"
    """Form of the loss."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the two InfoNCE forms."""
    margin: Annotated[float, Field(gt=0)] = 1.0
    """Margin of the hinge form."""

    def _default_block(self, depth: int) -> int:
        return depth


def _pairs(value: Any) -> Any:
    """`[16, 8]` is short for `[[16, 8]]`."""
    return [value] if isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple) else value


_Pairs = Annotated[tuple[tuple[Block, Block], ...], Field(min_length=1)]


class LayerSyncTerm(_Weighted):
    """Align a shallow block with a deep block of the same network (LayerSync). Default: block 4/7 guides block 2/7."""

    kind: Literal["layersync"] = "layersync"
    weight: Weight = 0.2
    layers: Annotated[_Pairs, BeforeValidator(_pairs, json_schema_input_type=_Pairs | tuple[Block, Block])] | None = (
        None
    )
    """`[deep, shallow]`, or a list of such pairs: the deep block guides the shallow one; blocks count from 1."""

    @model_validator(mode="after")
    def _none_guides_itself(self) -> Self:
        for deep, shallow in self.layers or ():
            if deep == shallow:
                raise WrongKey("layers", f"block {deep} cannot guide itself; write [deep, shallow]")
        return self

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        return {"layers": tuple(block for pair in self.layers or () for block in pair)}

    def resolved(self, size: BackboneSize) -> Self:
        default = ((round(4 * size.depth / 7), round(2 * size.depth / 7)),)
        return self.model_copy(update={"layers": self.layers or default})


# SRA's train.py: 0.2 up to epoch 149, then a tenfold decrease per 1,000 epochs (of 5,004 steps).
_SRA_WEIGHT = Schedule(steps=(149 * 5004, 1149 * 5004), weights=(0.2, 0.02), curve="geometric")


class SraTerm(_OnePair):
    """Align block n with the EMA network's block m at an earlier, less noisy time (SRA). Default: block 8 guides 4."""

    has_weights = True
    kind: Literal["sra"] = "sra"
    weight: Weight = _SRA_WEIGHT
    """Weight of the method's loss. Default: SRA's schedule; 0.5 for distance cosine."""
    t_offset: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Largest amount by which the EMA network's time is earlier (less noisy) than the student's."""
    distance: Literal["smooth_l1", "l1", "l2", "cosine"] = "smooth_l1"
    """Distance between the tokens of the two blocks."""

    @model_validator(mode="before")
    @classmethod
    def _weight_of_the_distance(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("distance") == "cosine":
            return {"weight": 0.5, **values}
        return values

    def resolved(self, size: BackboneSize) -> Self:
        return self.model_copy(update={"layers": self.layers or (min(8, size.depth), min(4, size.depth))})


class _Stoppable(Spec):
    stop: Steps | Literal["never"] = "never"
    """Early stop: from this step on, the run trains with the diffusion loss alone."""


class NoMethod(NoTerm):
    """The diffusion loss alone, from the first step to the last."""

    stop: ClassVar[Literal["never"]] = "never"


class VaeAlign(VaeAlignTerm, _Stoppable):
    """`VaeAlignTerm` until `stop`."""


class SelfGuided(SelfGuidedTerm, _Stoppable):
    """`SelfGuidedTerm` until `stop`, under `teacher`."""

    teacher: TeacherSpec
    """The run whose checkpoint guides."""

    @property
    def teacher_spec(self) -> TeacherSpec:
        return self.teacher


class Repa(RepaTerm, _Stoppable):
    """`RepaTerm` until `stop`; the trial's `encoder` says which encoder."""


class Dispersive(DispersiveTerm, _Stoppable):
    """`DispersiveTerm` until `stop`."""


class LayerSync(LayerSyncTerm, _Stoppable):
    """`LayerSyncTerm` until `stop`."""


class Sra(SraTerm, _Stoppable):
    """`SraTerm` until `stop`."""


def _named(value: Any) -> Any:
    """`method: vae_align` is short for `method: {kind: vae_align}`."""
    return {"kind": value} if isinstance(value, str) else value


Term = Annotated[
    NoTerm | VaeAlignTerm | SelfGuidedTerm | RepaTerm | DispersiveTerm | LayerSyncTerm | SraTerm,
    Field(discriminator="kind"),
]
_Kind = Literal["none", "vae_align", "repa", "dispersive", "layersync", "sra"]  # self_guided needs a teacher
_Written = NoMethod | VaeAlign | SelfGuided | Repa | Dispersive | LayerSync | Sra | _Kind
Method = Annotated[
    NoMethod | VaeAlign | SelfGuided | Repa | Dispersive | LayerSync | Sra,
    Field(discriminator="kind"),
    BeforeValidator(_named, json_schema_input_type=_Written),
]

TeacherPrecision = Literal["fp32", "bf16", "fp16"]


class TeacherSpec(Spec):
    """The teacher: a run of the same backbone, data and seed with its own method, after `iterations` steps."""

    method: Method = VaeAlign()
    """The method that the teacher is trained with."""
    iterations: Steps = 200_000
    """Steps that the teacher is trained for."""
    weights: Literal["ema", "raw"] = "ema"
    """Which of the teacher's weights guide."""
    precision: TeacherPrecision | None = None
    """Precision of the teacher's forward passes. Default: the student's."""


SelfGuided.model_rebuild()
