"""The one training loop, for every method, teacher and student alike.

`train` takes a run from a checkpoint to a later step. It knows nothing of who asks for it: a `Context` tells it its
rank and device and takes its progress. What it returns follows from the run's description alone ("same history, same
bits"): draws come from (seed, step), weights of a new network from (seed, name), nothing from global state.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables import backbones, ema, encoders, methods
from trainables.checkpoint import Checkpoint, Tensors
from trainables.data import LatentSet
from trainables.draws import draw, draw_images, generator, share_of
from trainables.methods import Batch, Method, View
from trainables.spec import (
    PROJECTED,
    OptimizerSpec,
    Phase,
    Recipe,
    RepaTerm,
    Run,
    SelfGuidedTerm,
    SraTerm,
    TeacherRef,
    VaeAlignTerm,
)
from trainables.training_step import TrainingStep, make_batch, split

POINTS_PER_STRETCH = 20  # of the curve that is kept
LOOK_EVERY = 100  # steps between looks at whether the numbers are still finite: a look waits for the device
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


TERMS = ("loss", "loss_diffusion", "loss_method", "grad_norm")


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient became NaN or infinite at `step`; `terms` are those of that step, `before` of the last."""

    def __init__(self, step: int, terms: dict[str, float], before: dict[str, float]):
        super().__init__(f"not finite at step {step}: {terms}; before it: {before}")
        self.step, self.terms, self.before = step, terms, before


@dataclass
class Context:
    """Where a training runs. `progress(step)` is called after every step, on every rank; so is `should_stop(step)`
    until it says, on all ranks at the same step, that training is to end there.

    `micro_batch` images at most go through the network at once on a rank, gradients add up (None: the rank's whole
    share); with `checkpoint_blocks` activations are computed again instead of kept. Both save memory: the first changes
    rounding, the second nothing. `hold_data` holds the data set in the device's memory.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None
    checkpoint_blocks: bool = False
    hold_data: bool = False
    progress: Callable[[int], None] = lambda step: None
    should_stop: Callable[[int], bool] = lambda step: False


@dataclass
class Outcome:
    """What training yields: the state at its last step and what was measured on the way. The last step is the one that
    was asked for, or an earlier one where `Context.should_stop` said so."""

    checkpoint: Checkpoint
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


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


def load_backbone(recipe: Recipe, data: LatentSet, weights: Tensors, device: torch.device) -> backbones.Backbone:
    """A frozen backbone in evaluation mode with these weights: a teacher, or a snapshot to probe."""
    backbone = build_backbone(recipe, data)
    backbone.load_state_dict(weights)
    return backbone.to(device).requires_grad_(False).eval()


def train(
    run: Run,
    until: int,
    *,
    data: LatentSet,
    context: Context,
    start: Checkpoint | None = None,
    teacher: Callable[[TeacherRef], nn.Module] | None = None,
) -> Outcome:
    """Train `run` from `start` (or from fresh weights) up to and including step `until`, across its phases.

    Args:
        teacher: loads the frozen backbone that a phase looks up to; needed where a phase has one.

    Raises:
        NonFiniteLoss: the loss left the finite numbers; names the stretch and the terms.
        ValueError: `until` lies before `start` or beyond the run's end.
    """
    first = start.step if start else 0
    if not first <= until <= run.steps:
        raise ValueError(f"cannot train from step {first} to {until} of a run of {run.steps} steps")
    backbone = build_backbone(run, data).to(context.device)
    backbone.checkpoint_blocks = context.checkpoint_blocks
    if start:
        backbone.load_state_dict(start.backbone)
    average = ema.shadow(backbone)
    if start:
        average.load_state_dict(start.ema)
    outcome = Outcome(start or Checkpoint(0, backbone.state_dict(), average.state_dict()))

    while (step := outcome.checkpoint.step) < until:
        phase = run.phase_after(step)
        method = build_method(run, phase, backbone, data, teacher).to(context.device)
        begins = max((earlier.until for earlier in run.phases if earlier.until <= step), default=0)
        if step > begins:
            method.load_state_dict(outcome.checkpoint.method)
        training = _Stretch(run, phase, backbone, average, method, outcome.checkpoint.optimizer, data, context)
        last = min(phase.until, until)
        outcome = training.go(step, last, outcome)
        if outcome.checkpoint.step < last:
            break
    return outcome


def build_method(
    run: Run,
    phase: Phase,
    backbone: Any,
    data: LatentSet,
    teacher: Callable[[TeacherRef], nn.Module] | None,
) -> Method:
    """The method of a phase; what is trained of it is drawn from the run's seed."""
    term = phase.term.resolved(run.size)
    # A term's own options are its method's; its weight is applied by the training step.
    options: dict[str, Any] = term.model_dump(exclude={"kind", "weight"})
    if isinstance(term, PROJECTED + (SraTerm,)):
        options |= {"width": backbone.width, "generator": generator(run.seed, "method", term.kind)}
    if isinstance(term, PROJECTED):
        options["projector_width"] = phase.projector_width
    if isinstance(term, VaeAlignTerm):
        options |= {"patch": backbone.patch_size, "channels": data.latent_shape[0]}
    if isinstance(term, SelfGuidedTerm):
        if phase.teacher is None or teacher is None:
            raise ValueError("a self_guided phase needs a teacher")
        options["teacher"] = teacher(phase.teacher)
    if isinstance(term, RepaTerm):
        if phase.encoder is None:
            raise ValueError("a repa phase needs an encoder")
        path = Path(phase.encoder.path) if phase.encoder.path else None
        grid = math.isqrt(backbone.num_tokens)
        options["encoder"] = encoders.create(phase.encoder.kind, grid=grid, path=path).to(backbone.pos_embed.device)
    return methods.create(term.kind, **options)


class _Stretch:
    """Consecutive steps of one phase."""

    def __init__(
        self,
        run: Run,
        phase: Phase,
        backbone: nn.Module,
        average: nn.Module,
        method: Method,
        moments: Tensors,
        data: LatentSet,
        context: Context,
    ):
        self.run, self.data, self.context = run, data, context
        self.average = average
        self.module = TrainingStep(backbone, method, run.velocity_cosine)
        self.weight_at = phase.term.weight_at
        self.view = View(average=average, path=run.path)
        self.optimizer = _optimizer(self.module, run.optimizer, moments, context.device)
        # The buffers are constants (positions): nothing to broadcast.
        self.replica: Any = self.module
        if context.world_size > 1:
            self.replica = DistributedDataParallel(self.module, broadcast_buffers=False)
        mine = share_of(run.batch_size, context.rank, context.world_size)
        share = mine.stop - mine.start
        self.piece = min(context.micro_batch or share, share)
        if method.whole_batch and self.piece < share:
            raise ValueError(f"{phase.term.kind} compares the images of a whole batch: it cannot run in micro-batches")
        if method.whole_batch and run.batch_size % context.world_size:
            raise ValueError(f"{phase.term.kind} compares the images of a whole batch: ranks need equal shares of it")

    def go(self, first: int, last: int, before: Outcome) -> Outcome:
        """Train from step `first` to `last`, or as far as may be; what `before` measured stays in front of what this
        measures."""
        began = time.perf_counter()
        # Losses stay on the device until the end, so that hardly a step waits for a transfer.
        history = torch.zeros(last - first, len(TERMS), device=self.context.device)
        step = first
        while step < last:
            history[step - first] = self.step(step)
            step += 1
            self.context.progress(step)
            # The norm is that of the reduced gradients: all ranks see the same one and leave together.
            if (step - first) % LOOK_EVERY == 0 and not history[
                step - first - LOOK_EVERY : step - first, 3
            ].isfinite().all():
                break
            if step < last and self.context.should_stop(step):
                break
        history = history[: step - first]
        if self.context.world_size > 1:
            dist.all_reduce(history)
            history /= self.context.world_size
        history = history.cpu()
        seconds = before.seconds + time.perf_counter() - began
        _check_finite(history, first)
        return Outcome(self.checkpoint(step), before.curve + _curve(history, first), seconds)

    def step(self, step: int) -> Tensor:
        """The optimizer step that leads from `step` to `step + 1`; returns its losses and gradient norm (4,)."""
        run, context = self.run, self.context
        whose = {"batch_size": run.batch_size, "num_images": self.data.num_images}
        whose |= {"rank": context.rank, "world_size": context.world_size}
        shape, normal_time = self.data.latent_shape, run.time == "log_normal"
        draws = draw(run.seed, step, **whose, latent_shape=shape, normal_time=normal_time)
        batch = make_batch(run, draws, self.data, context.device)
        self.data.expect(*draw_images(run.seed, step + 1, **whose))  # while this step computes
        self.optimizer.zero_grad(set_to_none=True)
        pieces = split(batch, self.piece)
        losses = torch.stack([self._gradients(piece, step, last=piece is pieces[-1]) for piece in pieces])
        norm = _clip_gradients(self.module, run.optimizer.grad_clip)
        self.optimizer.step()
        ema.update(self.average, self.module.backbone, run.ema_decay)
        return torch.cat([losses.sum(dim=0), norm[None]])

    def _gradients(self, piece: Batch, step: int, last: bool) -> Tensor:
        """Add the gradients of a piece of the batch; returns its part of the losses (3,). Ranks meet at the last.

        Every image counts alike, also where ranks have unequal shares: DDP takes the mean over ranks, of what is
        weighted here by the images that a rank has more than the mean of them.
        """
        part = len(piece.t) * self.context.world_size / self.run.batch_size
        apart = contextlib.nullcontext() if last or self.replica is self.module else self.replica.no_sync()
        with apart:
            with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.run.precision == "bf16"):
                losses = self.replica(piece, self.weight_at(step), self.view)
            (losses.total * part).backward()
        return torch.stack(losses).detach() * part

    def checkpoint(self, step: int) -> Checkpoint:
        moments = {
            f"{moment}.{name}": self.optimizer.state[parameter][moment]
            for name, parameter in self.module.named_parameters()
            if parameter in self.optimizer.state
            for moment in _MOMENTS
        }
        module = self.module
        return Checkpoint(
            step, module.backbone.state_dict(), self.average.state_dict(), module.method.state_dict(), moments
        )


def _optimizer(module: nn.Module, spec: OptimizerSpec, moments: Tensors, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all parameters, those that have `moments` with theirs: a new phase keeps the backbone's."""
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
def _clip_gradients(module: TrainingStep, limit: float | None) -> Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; returns the norm before.

    The backbone's squares are summed apart from the method's: a method of weight 0 then adds an exact zero, and the
    backbone's update keeps its bits (torch's own clipping would sum in another order).
    """
    parts = [[p.grad for p in part.parameters() if p.grad is not None] for part in (module.backbone, module.method)]
    norm = torch.stack([_square_sum(part, module) for part in parts]).sum().sqrt()
    if limit is not None:
        torch._foreach_mul_(parts[0] + parts[1], torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _square_sum(gradients: list[Tensor], module: nn.Module) -> Tensor:
    if not gradients:
        return next(module.parameters()).new_zeros(())
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def _check_finite(history: Tensor, first: int) -> None:
    if history.isfinite().all():
        return
    wrong = int((~history.isfinite().all(dim=1)).nonzero()[0])
    at, before = (dict(zip(TERMS, history[row].tolist(), strict=True)) for row in (wrong, max(0, wrong - 1)))
    raise NonFiniteLoss(first + wrong + 1, at, before if wrong else {})


def _curve(history: Tensor, first: int) -> list[dict[str, float]]:
    """Means over equal stretches of steps, each at the step that ends it."""
    points = []
    for rows in torch.arange(len(history)).chunk(POINTS_PER_STRETCH):
        means = history[rows].mean(dim=0).tolist()
        points.append({"step": first + int(rows[-1]) + 1, **dict(zip(TERMS, means, strict=True))})
    return points
