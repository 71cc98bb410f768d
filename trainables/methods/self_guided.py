"""Pull a block toward a frozen teacher's guided feature (Self-Transcendence, arXiv 2601.07773, Eq. 3 and 4).

    f_g = f_u + omega (f_c - f_u)          L = mean over batch, tokens and channels of ( projector(h_n) - f_g )^2

f_c and f_u are the teacher's states after block m for the true label and for the null class, at the student's x_t and
t. This is classifier-free guidance in feature space. The teacher gets the true label even where the student's is
dropped. The paper leaves open whether the target is normalised; `target_norm` selects that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import TeacherPrecision
from trainables.methods.base import Batch, Method, projector


class Teacher(Protocol):
    """What a teacher provides: a backbone's `states`, which computes no block beyond the deepest one that is read."""

    width: int
    num_classes: int

    def states(self, x_t: Tensor, t: Tensor, y: Tensor, blocks: Collection[int]) -> dict[int, Tensor]: ...


class Branches(NamedTuple):
    """A teacher's states (B, T, D) after one block, for the true label and for the null class."""

    conditional: Tensor
    unconditional: Tensor


class Guide:
    """A frozen teacher that is shared by students. It runs once per batch, for all blocks that any student reads.

    Args:
        precision: precision of the teacher's matrix products; other operations stay in float32. None: the student's.
    """

    def __init__(self, teacher: Teacher, precision: TeacherPrecision | None = None):
        self.teacher, self.precision = teacher, precision
        self._read: list[int] = []  # the block that each student reads
        self._batch: Batch | None = None
        self._states: dict[int, Branches] = {}
        self._unread = 0  # students that have not read the current batch

    def expect(self, block: int) -> None:
        """Register a student, which will read `block` of every batch."""
        self._read.append(block)

    def __call__(self, batch: Batch, block: int) -> Branches:
        """The teacher's states for a batch. Every registered student calls this once per batch."""
        if self._batch is not batch:
            self._batch, self._states, self._unread = batch, self._compute(batch), len(self._read)
        states = self._states[block]
        self._unread -= 1
        if not self._unread:  # all students have read the batch, so its states are freed
            self._batch, self._states = None, {}
        return states

    def _compute(self, batch: Batch) -> dict[int, Branches]:
        device = batch.x_t.device.type
        context: AbstractContextManager[Any] = contextlib.nullcontext()  # keeps the student's autocast
        if self.precision is not None:
            dtype = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
            context = torch.autocast(device, dtype, enabled=self.precision != "fp32")
        with context:
            return branches(self.teacher, batch.x_t, batch.t, batch.labels, set(self._read))


@torch.no_grad()
def branches(teacher: Teacher, x_t: Tensor, t: Tensor, labels: Tensor, blocks: Collection[int]) -> dict[int, Branches]:
    """The states after `blocks` for the true labels (B,) and for the null class, computed in one batch of 2B."""
    null = torch.full_like(labels, teacher.num_classes)
    states = teacher.states(x_t, t, torch.cat([labels, null]), blocks)  # {block: (2B, T, D)}
    return {block: Branches(*state.chunk(2)) for block, state in states.items()}


def extrapolate(pair: Branches, guidance_scale: float) -> Tensor:
    """f_g (B, T, D) float32 = f_u + omega (f_c - f_u)."""
    # lerp is exact at both ends: scale 0 gives f_u and scale 1 gives f_c to the last bit.
    return torch.lerp(pair.unconditional.float(), pair.conditional.float(), guidance_scale)


def guided_feature(
    teacher: Teacher, x_t: Tensor, t: Tensor, labels: Tensor, *, block: int, guidance_scale: float
) -> Tensor:
    """f_g (B, T, D) float32 of a teacher after one block, for x_t (B, C, H, W), t (B,) and true labels (B,)."""
    return extrapolate(branches(teacher, x_t, t, labels, (block,))[block], guidance_scale)


class SelfGuided(Method):
    """Aligns one block with a teacher's guided feature.

    Args:
        width: width of the student, D.
        teacher: frozen and in evaluation mode, or a guide that is shared with other students.
        layers: (m, n): teacher block m guides student block n.
        guidance_scale: omega.
        projector_width: hidden width of the projector.
        generator: for the projector's weights.
        target_norm: `layer` applies LayerNorm without weights to the target.
    """

    guide: Guide

    def __init__(
        self,
        *,
        width: int,
        teacher: Teacher | Guide,
        layers: tuple[int, int],
        guidance_scale: float,
        projector_width: int,
        generator: torch.Generator,
        target_norm: Literal["none", "layer"] = "none",
    ):
        super().__init__()
        self.teacher_block, student_block = layers
        self.taps = (student_block,)
        self.guidance_scale = guidance_scale
        self.target_norm = target_norm
        self.guide = teacher if isinstance(teacher, Guide) else Guide(teacher)
        self.guide.expect(self.teacher_block)
        self.projector = projector(width, projector_width, self.guide.teacher.width, generator)

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: Any = None) -> Tensor:
        target = extrapolate(self.guide(batch, self.teacher_block), self.guidance_scale)
        if self.target_norm == "layer":
            target = F.layer_norm(target, target.shape[-1:])
        return F.mse_loss(self.projector(hidden[self.taps[0]]).float(), target)
