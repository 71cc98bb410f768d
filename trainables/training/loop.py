"""The training loop for every method, of teachers and students.

`train` continues one run from a checkpoint to a later step; `train_together` continues several runs that see the same
batches. A `Context` gives rank and device and receives progress. The result depends only on the description of
the run ("same history, same bits"): random draws come from (seed, step), the weights of a new network from (seed,
name), and nothing from global state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from trainables import backbones
from trainables.config import BATCH_FIELDS, Recipe, Run
from trainables.datasets.latent_set import LatentSet
from trainables.draws import draw, draw_images
from trainables.training.checkpoint import Checkpoint, Tensors
from trainables.training.student import (
    Context,
    Guides,
    LoadTeacher,
    NonFiniteLoss,
    Outcome,
    Student,
    build_backbone,
    piece_of,
)
from trainables.training.training_step import make_batch, split

CHECK_EVERY = 100  # steps between checks that losses are finite; a check waits for the device


def load_backbone(
    recipe: Recipe, data: LatentSet, weights: Tensors, device: torch.device, compiled: bool = False
) -> backbones.Backbone:
    """A frozen backbone in evaluation mode with the given weights: a teacher, or a snapshot to probe."""
    backbone = build_backbone(recipe, data)
    backbone.load_state_dict(weights)
    backbone = backbone.to(device).requires_grad_(False).eval()
    if compiled:
        backbone.compile_blocks()
    return backbone


def train(
    run: Run,
    until: int,
    *,
    data: LatentSet,
    context: Context,
    start: Checkpoint | None = None,
    teacher: LoadTeacher | None = None,
) -> Outcome:
    """Train `run` from `start` (or from fresh weights) up to and including step `until`, across its phases.

    Args:
        teacher: loads the frozen teacher of a phase; required where a phase has one.

    Raises:
        NonFiniteLoss: a loss or gradient is not finite; the message names the step and the loss terms.
        ValueError: `until` lies before `start` or beyond the run's end.
    """
    (outcome,) = train_together([run], until, data=data, context=context, starts=[start], teacher=teacher)
    if isinstance(outcome, NonFiniteLoss):
        raise outcome
    return outcome


def train_together(
    runs: Sequence[Run],
    until: int,
    *,
    data: LatentSet,
    context: Context,
    starts: Sequence[Checkpoint | None],
    teacher: LoadTeacher | None = None,
) -> list[Outcome | NonFiniteLoss]:
    """Train several runs in lockstep. Each gets the bits that `train` would give it.

    A batch is drawn, read and moved once for all runs. A teacher runs once per batch for all runs that it guides.

    Args:
        starts: the checkpoint that each run starts from, all at the same step.

    Returns:
        For each run what `train` returns, or the error that `train` would raise. The other runs continue.

    Raises:
        ValueError: as `train`; or the runs start at different steps, or do not see the same batches.
    """
    first = starts[0].step if starts[0] else 0
    if any((start.step if start else 0) != first for start in starts):
        raise ValueError("runs that train together start at the same step")
    for run in runs:
        if not first <= until <= run.steps:
            raise ValueError(f"cannot train from step {first} to {until} of a run of {run.steps} steps")
        if any(getattr(run, name) != getattr(runs[0], name) for name in BATCH_FIELDS):
            raise ValueError(f"runs that train together agree in {', '.join(sorted(BATCH_FIELDS))}")
    students = [Student(run, start, data, context) for run, start in zip(runs, starts, strict=True)]
    guides = Guides(teacher)
    step, stopped = first, False
    while step < until and not stopped and (finite := [student for student in students if student.error is None]):
        last = min(until, *(student.run.phase_after(step).until for student in finite))
        for student in finite:
            student.enter(step, last, guides)
        step, stopped = _advance(finite, step, last, data, context)
    return [student.error or student.outcome() for student in students]


def _advance(students: list[Student], first: int, last: int, data: LatentSet, context: Context) -> tuple[int, bool]:
    """Train from step `first` to `last`, which lie in one phase of each student.

    Returns:
        The step that was reached, and whether training ended there early. Students with losses that are not finite
        stop taking part.
    """
    run, training, step, began = students[0].run, list(students), first, time.perf_counter()
    shares = {"batch_size": run.batch_size, "num_images": data.num_images}
    shares |= {"rank": context.rank, "world_size": context.world_size}
    shape, normal_time = data.latent_shape, run.time == "log_normal"
    while True:
        draws = draw(run.seed, step, **shares, latent_shape=shape, normal_time=normal_time)
        batch = make_batch(run, draws, data, context.device)
        data.expect(*draw_images(run.seed, step + 1, **shares))  # while this step computes
        pieces = split(batch, piece_of(run, context))
        for piece in pieces:
            for student in training:
                student.learn(piece, step, last=piece is pieces[-1])
        step += 1
        context.progress(step)
        if (step - first) % CHECK_EVERY == 0:
            # The norm is that of the reduced gradients, so all ranks see the same value and drop a student together.
            training = [student for student in training if student.is_finite(CHECK_EVERY)]
        if step == last or not training:
            break
        checkpoint, stop = context.should_checkpoint(step), context.should_stop(step)
        if stop:
            break
        if checkpoint:
            began = _fetch_metrics(training, began)
            training = [student for student in training if student.error is None]
            context.on_checkpoint([student.outcome() for student in training])
    _fetch_metrics(students, began)
    return step, step < last


def _fetch_metrics(students: list[Student], began: float) -> float:
    """Fetch the metrics of all students and divide the seconds since `began` among them; returns the current time."""
    for student in students:
        student.fetch_metrics()
    now = time.perf_counter()
    for student in students:
        student.add_seconds((now - began) / len(students))
    return now


__all__ = [
    "Context",
    "NonFiniteLoss",
    "Outcome",
    "build_backbone",
    "load_backbone",
    "train",
    "train_together",
]
