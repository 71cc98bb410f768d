"""One run in training: its networks, its optimizer, the steps of each phase, and its outcome.

A student may train alone or in lockstep with others. What it computes follows from its run, the step and the batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables import backbones, methods
from trainables.config import OptimizerSpec, Phase, Recipe, Run, TeacherRef
from trainables.datasets.latent_set import LatentSet
from trainables.draws import generator, share_of
from trainables.encoders import patch_encoders
from trainables.methods import Batch, Guide, Method, Teacher, View
from trainables.training import ema
from trainables.training.checkpoint import Checkpoint, Tensors
from trainables.training.training_step import TrainingStep

POINTS_PER_SEGMENT = 20  # points of the training curve that are kept
TERMS = ("loss", "loss_diffusion", "loss_method", "grad_norm")
LoadTeacher = Callable[[TeacherRef], Teacher]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient became NaN or infinite at `step`. `terms` are the loss terms of that step, `before` those
    of the step before it."""

    def __init__(self, step: int, terms: dict[str, float], before: dict[str, float]):
        super().__init__(f"not finite at step {step}: {terms}; before it: {before}")
        self.step, self.terms, self.before = step, terms, before


@dataclass
class Context:
    """Where a training runs, and the functions that it calls.

    Args:
        micro_batch: most images that go through the network at once on a rank; gradients add up. None: the rank's
            whole share. Saves memory and changes rounding.
        checkpoint_blocks: recompute activations in the backward pass instead of keeping them. Saves memory and changes
            no bits.
        compile: compile the blocks. Changes rounding.
        hold_data: hold the data set in the device's memory.
        progress: called on every rank after every step.
        should_checkpoint, should_stop: called on every rank after every step but the last. They return the same on all
            ranks: whether `on_checkpoint` is due while training continues, and whether training ends at this step.
        on_checkpoint: called with the outcomes so far. It must copy what it keeps, because training changes the
            tensors.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None
    checkpoint_blocks: bool = False
    compile: bool = False
    hold_data: bool = False
    progress: Callable[[int], None] = lambda step: None
    should_checkpoint: Callable[[int], bool] = lambda step: False
    should_stop: Callable[[int], bool] = lambda step: False
    on_checkpoint: Callable[[list[Outcome]], None] = lambda outcomes: None


@dataclass
class Outcome:
    """The state at the last step, and the metrics since training began or since the previous `on_checkpoint`.

    The last step is the one that was asked for, or an earlier one where `Context.should_stop` ended training.
    """

    run: Run
    checkpoint: Checkpoint
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0  # this run's share of the time that all runs in lockstep took


def build_backbone(recipe: Recipe, data: LatentSet) -> backbones.Backbone:
    """A new backbone for `data`, its weights drawn from the recipe's seed."""
    channels, height, _ = data.latent_shape
    return backbones.create(
        recipe.backbone,
        seed=recipe.seed,
        in_channels=channels,
        input_size=height,
        num_classes=data.num_classes,
    )


class Guides:
    """The guides of the runs that train together: one `Guide` for each teacher."""

    def __init__(self, load: LoadTeacher | None):
        self._load = load
        self._known: dict[str, Guide] = {}

    def find(self, reference: TeacherRef | None) -> Guide:
        """The guide of a teacher, which is loaded when it is first asked for.

        Raises:
            ValueError: there is no reference, or no way to load a teacher.
        """
        if reference is None or self._load is None:
            raise ValueError("a self_guided phase needs a teacher")
        name = reference.model_dump_json()
        if name not in self._known:
            self._known[name] = Guide(self._load(reference), reference.precision)
        return self._known[name]


def build_method(
    run: Run,
    phase: Phase,
    backbone: Any,
    data: LatentSet,
    guides: Guides,
) -> Method:
    """The method of a phase. The weights that it trains are drawn from the run's seed."""
    term = phase.term.resolved(run.size)
    # The remaining fields of a term are arguments of its method. The weight is applied by the training step.
    options: dict[str, Any] = term.model_dump(exclude={"kind", "weight"})
    if term.has_weights:
        options |= {"width": backbone.width, "generator": generator(run.seed, "method", term.kind)}
    if term.has_projector:
        options["projector_width"] = phase.projector_width
    if term.needs_latent_geometry:
        options |= {"patch": backbone.patch_size, "channels": data.latent_shape[0]}
    if term.needs_teacher:
        options["teacher"] = guides.find(phase.teacher)
    if term.needs_encoder:
        if phase.encoder is None:
            raise ValueError("a repa phase needs an encoder")
        path = Path(phase.encoder.path) if phase.encoder.path else None
        grid = math.isqrt(backbone.num_tokens)
        options["encoder"] = patch_encoders.create(phase.encoder.kind, grid=grid, path=path).to(
            backbone.pos_embed.device
        )
    return methods.create(term.kind, **options)


class Student:
    """One run in training, across its phases."""

    error: NonFiniteLoss | None = None

    def __init__(self, run: Run, start: Checkpoint | None, data: LatentSet, context: Context):
        self.run, self.data, self.context = run, data, context
        self.backbone = build_backbone(run, data).to(context.device)
        self.backbone.checkpoint_blocks = context.checkpoint_blocks
        if start:
            self.backbone.load_state_dict(start.backbone)
        self.average = ema.shadow(self.backbone)
        if start:
            self.average.load_state_dict(start.ema)
        if context.compile:
            self.backbone.compile_blocks()
            self.average.compile_blocks()
        self.view = View(average=self.average, path=run.path)
        self.phase: Phase | None = None
        self._step = start.step if start else 0
        self._start: Checkpoint | None = start
        self._curve: list[dict[str, float]] = []
        self._seconds = 0.0

    def enter(self, step: int, last: int, guides: Guides) -> None:
        """Prepare for the steps from `step` to `last`, which lie in one phase."""
        if self.phase is not (phase := self.run.phase_after(step)):
            self._begin(phase, step, guides)
        # Losses stay on the device until `fetch_metrics`, so that steps do not wait for transfers.
        self._rows, self._first = torch.zeros(last - step, len(TERMS), device=self.context.device), step

    def _begin(self, phase: Phase, step: int, guides: Guides) -> None:
        run, context = self.run, self.context
        moments = self._moments() if self.phase else self._start.optimizer if self._start else {}
        method = build_method(run, phase, self.backbone, self.data, guides).to(context.device)
        if self._start and step > max((earlier.until for earlier in run.phases if earlier.until <= step), default=0):
            method.load_state_dict(self._start.method)
        self._start = None
        share = _share(run, context)
        if phase.term.needs_whole_batch and piece_of(run, context) < share.stop - share.start:
            raise ValueError(f"{phase.term.kind} compares the images of a whole batch: it cannot run in micro-batches")
        if phase.term.needs_whole_batch and run.batch_size % context.world_size:
            raise ValueError(f"{phase.term.kind} compares the images of a whole batch: ranks need equal shares of it")
        self.phase, self.weight_at = phase, phase.term.weight_at
        self.module = TrainingStep(self.backbone, method, run.velocity_cosine)
        self.optimizer = _optimizer(self.module, run.optimizer, moments, context.device)
        # The buffers are constants (positions): nothing to broadcast.
        self.replica: Any = self.module
        if context.world_size > 1:
            self.replica = DistributedDataParallel(self.module, broadcast_buffers=False)
        # Collected once: walking through the modules at every step is slow.
        self._parameters = list(self.backbone.parameters()), list(method.parameters())
        self._averages = list(self.average.parameters())

    def learn(self, piece: Batch, step: int, last: bool) -> None:
        """Add the gradients of one piece of the batch of step `step`. With the last piece, take the optimizer step,
        which leads to `step + 1`."""
        row = self._rows[step - self._first]
        row[:3] += self._gradients(piece, step, last)
        if last:
            row[3] = _clip_gradients(*self._parameters, self.run.optimizer.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            ema.update(self._averages, self._parameters[0], self.run.ema_decay)
            self._step = step + 1

    def _gradients(self, piece: Batch, step: int, last: bool) -> Tensor:
        """Add the gradients of one piece of the batch; returns its part of the losses (3,). With the last piece,
        gradients are reduced over ranks.

        DDP takes the mean over ranks. A rank's loss is therefore weighted by its number of images relative to the mean
        number per rank, so that every image counts alike even where ranks have unequal shares.
        """
        part = len(piece.t) * self.context.world_size / self.run.batch_size
        reduction = contextlib.nullcontext() if last or self.replica is self.module else self.replica.no_sync()
        with reduction:
            with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.run.precision == "bf16"):
                losses = self.replica(piece, self.weight_at(step), self.view)
            (losses.total * part).backward()
        return torch.stack(losses).detach() * part

    def is_finite(self, steps: int) -> bool:
        """Whether the gradient norms of the last `steps` steps are finite. Waits for the device."""
        done = self._step - self._first
        return bool(self._rows[max(0, done - steps) : done, 3].isfinite().all())

    def fetch_metrics(self) -> None:
        """Copy the losses since the last call from the device, averaged over ranks, and set `error` where one is not
        finite."""
        if self.error or self._step == self._first:
            return
        rows = self._rows[: self._step - self._first]
        if self.context.world_size > 1:
            dist.all_reduce(rows)
            rows /= self.context.world_size
        rows = rows.cpu()
        self.error = _not_finite(rows, self._first)
        self._curve += _curve(rows, self._first)
        self._rows, self._first = self._rows[len(rows) :], self._step

    def add_seconds(self, seconds: float) -> None:
        """Add to the training time of the next outcome."""
        self._seconds += seconds

    def outcome(self) -> Outcome:
        """The current state, with the metrics and seconds since the previous call."""
        if self.phase is None:
            fresh = Checkpoint(0, self.backbone.state_dict(), self.average.state_dict())
            return Outcome(self.run, self._start or fresh)
        measured, self._curve = self._curve, []
        seconds, self._seconds = self._seconds, 0.0
        networks = self.backbone.state_dict(), self.average.state_dict(), self.module.method.state_dict()
        return Outcome(self.run, Checkpoint(self._step, *networks, self._moments()), measured, seconds)

    def _moments(self) -> Tensors:
        return {
            f"{moment}.{name}": self.optimizer.state[parameter][moment]
            for name, parameter in self.module.named_parameters()
            if parameter in self.optimizer.state
            for moment in _MOMENTS
        }


def _share(run: Run, context: Context) -> slice:
    return share_of(run.batch_size, context.rank, context.world_size)


def piece_of(run: Run, context: Context) -> int:
    """How many images go through the network at once on a rank."""
    share = _share(run, context)
    return min(context.micro_batch or run.batch_size, share.stop - share.start)


def _optimizer(module: nn.Module, spec: OptimizerSpec, moments: Tensors, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all parameters. Parameters with entries in `moments` continue with them: a new phase keeps the
    backbone's."""
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=spec.lr,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )
    for name, parameter in module.named_parameters():
        if f"step.{name}" in moments:
            state = {moment: moments[f"{moment}.{name}"].clone() for moment in _MOMENTS}
            optimizer.state[parameter] = {moment: tensor.to(device) for moment, tensor in state.items()}
    return optimizer


@torch.no_grad()
def _clip_gradients(backbone: list[nn.Parameter], method: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; returns the norm before scaling.

    The squares of the backbone are summed separately from those of the method. A method of weight 0 then adds an exact
    zero, and the update of the backbone keeps its bits (torch's own clipping sums in another order).
    """
    parts = [[p.grad for p in part if p.grad is not None] for part in (backbone, method)]
    norm = torch.stack([_square_sum(part, like=backbone[0]) for part in parts]).sum().sqrt()
    if limit is not None:
        torch._foreach_mul_(parts[0] + parts[1], torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _square_sum(gradients: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(torch._foreach_norm(gradients)).square().sum() if gradients else like.new_zeros(())


def _not_finite(history: Tensor, first: int) -> NonFiniteLoss | None:
    if history.isfinite().all():
        return None
    wrong = int((~history.isfinite().all(dim=1)).nonzero()[0])
    at, before = (dict(zip(TERMS, history[row].tolist(), strict=True)) for row in (wrong, max(0, wrong - 1)))
    return NonFiniteLoss(first + wrong + 1, at, before if wrong else {})


def _curve(history: Tensor, first: int) -> list[dict[str, float]]:
    """Mean losses over equal intervals of steps, each at the step that ends the interval."""
    points = []
    for rows in torch.arange(len(history)).chunk(POINTS_PER_SEGMENT):
        means = history[rows].mean(dim=0).tolist()
        points.append({"step": first + int(rows[-1]) + 1, **dict(zip(TERMS, means, strict=True))})
    return points
